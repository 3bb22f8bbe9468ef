"""The numbers of a release as attributes, checked when they are set."""

from typing import Any

from fxdp.backend.options import checked_scale


class Scale:
    """A clip bound, a noise multiplier or an expected batch size, as an attribute.

    What is no such number raises TypeError or ValueError when it is set, and changes nothing.
    Numbers that are right one by one and do not fit together are refused by the next step.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> float:
        if instance is None:
            raise AttributeError(f"{self.name} belongs to an instance")
        return instance.__dict__[f"_{self.name}"]

    def __set__(self, instance: Any, value: Any) -> None:
        instance.__dict__[f"_{self.name}"] = checked_scale(self.name, value)
