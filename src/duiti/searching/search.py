"""What is looked for before a run begins, if anything is.

search = Search(find_lr=True)
search.refuse_settings(config)                     # before anything is read
search.refuse_rows(material)                       # before the model is loaded
shop = search.look(job, set_up(job, talk), talk)   # before anything is trained
"""

from __future__ import annotations

from dataclasses import dataclass

from duiti.config import Config
from duiti.errors import UsageError
from duiti.material import Material
from duiti.searching.held_out import refuse_few
from duiti.searching.learning_rate import find_learning_rate
from duiti.searching.more_data import more_data, refuse_indivisible
from duiti.training.log import Talk
from duiti.workshop import Job, Workshop


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What a run is asked to find out first."""

    find_lr: bool = False
    """Which learning rate to train with."""
    more_data: bool = False
    """Whether more rows would help."""

    def refuse_settings(self, config: Config) -> None:
        """What is to be found must be open.

        Raises:
            UsageError: a learning rate is given.
        """
        if self.find_lr and config.learning_rate != "auto":
            raise UsageError(
                f"--find-lr finds a learning rate, and {config.learning_rate:g} is given",
                fix="leave one of them out (in a file of settings: learning_rate: auto)",
            )

    def refuse_rows(self, material: Material) -> None:
        """There must be rows to judge by.

        Raises:
            UsageError: there are too few.
        """
        if self.find_lr:
            refuse_few(material.train, material.val)
        if self.more_data:
            refuse_indivisible(material)

    def look(self, job: Job, shop: Workshop, talk: Talk) -> Workshop:
        """Find it out. The workshop is as it was, or has a learning rate that was found.

        Args:
            job: of a run that has not begun. The reasons of its settings may change.

        Raises:
            UsageError: rows repeat each other so often that too few are left.
            DuitiError: no learning rate could be tried.
            Abandoned: a signal came.
        """
        if self.find_lr:
            shop, _ = find_learning_rate(job, shop, talk)
        if self.more_data:
            more_data(job, shop, talk)
        return shop


NOTHING = Search()
