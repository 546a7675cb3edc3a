"""Many arms and seeds of one study."""

from __future__ import annotations

from collections.abc import Sequence

from tutelage.studies.arm import ArmPlan, ArmRun, Progress, run_arm


def run_all(plans: Sequence[ArmPlan], progress: Progress) -> list[ArmRun]:
    """Run every plan, in their order."""
    return [run_arm(plan, progress) for plan in plans]
