"""Prints pip constraints that pin the library's dependencies to their lower bounds.

Those of the library and of the packages that its users chain it with; tools such as
pytest are left to pip.
"""

import re
import tomllib

PINNED = {"jax", "optax", "flax", "chex"}

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
requirements = [*project["dependencies"]]
for extra in project["optional-dependencies"].values():
    requirements += extra
for requirement in sorted(set(requirements)):
    match = re.fullmatch(r"([\w-]+)>=([\w.]+)", requirement)
    if match and match[1] in PINNED:
        print(f"{match[1]}=={match[2]}")
        if match[1] == "jax":
            print(f"jaxlib=={match[2]}")
