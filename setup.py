"""What pyproject.toml cannot say: `systems/` and `data/` travel inside the package."""

from setuptools import find_packages, setup

report = [f"analysis/report/{pattern}" for pattern in ("*.css", "*.j2", "*.js", "static/*")]
shipped = {"boltzflow._systems": "systems", "boltzflow._data": "data"}

setup(
    packages=[*find_packages(include=["boltzflow", "boltzflow.*"]), *shipped],
    package_dir=shipped,
    package_data={"boltzflow": ["**/*.bib", "**/*.cpp", "**/*.h", *report], **{name: ["**/*"] for name in shipped}},
    exclude_package_data={"": ["__pycache__/*"]},
)
