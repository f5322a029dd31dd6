"""What you need to extend the package: a second public page, for those who write a criterion of their own.

Example:
    >>> from lightning_taylor import Taylor
    >>> from lightning_taylor.extend import check_criterion
    >>> check_criterion(Taylor())
"""

from lightning_taylor.criteria.check import check_criterion

__all__ = ["check_criterion"]
