"""Ready modules, data modules and configurations that make the main job and the experiments runnable."""
