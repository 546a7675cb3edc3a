"""What a study's teacher costs it here: asked at every step, remembered, or stored; measured before anything is trained."""

from tutelage.studies.planning.plan import PLAN, plan_study

__all__ = ["PLAN", "plan_study"]
