"""Packages to install: sctd_jax, and within it the recipes, so that no package named configs is installed.

All else stands in pyproject.toml, which cannot compute a list of packages from two folders.
"""

from setuptools import find_packages, setup

recipes = find_packages(include=["configs", "configs.*"])
setup(
    packages=[*find_packages(include=["sctd_jax", "sctd_jax.*"]), *(f"sctd_jax._recipes.{name}" for name in recipes)],
    package_data={"sctd_jax.reporting": ["page.html"]},
    package_dir={"sctd_jax._recipes.configs": "configs"},
)
