"""From a dataset to a bundle that trains at once: what is wrong with it, what it is like, what follows from that."""

from accunet_monai.planning.choices import Choice, Plan, make_plan
from accunet_monai.planning.examination import Examination, Problem, examine
from accunet_monai.planning.facts import CaseFacts
from accunet_monai.planning.run import plan_dataset

__all__ = ["CaseFacts", "Choice", "Examination", "Plan", "Problem", "examine", "make_plan", "plan_dataset"]
