"""What another interpreter runs: it measures the subject of one job."""

from .models import SUBJECTS
from .serve import Measured, serve


def main() -> None:
    """Serve the job that is the first argument."""
    serve(lambda job: Measured(SUBJECTS[job["subject"]], job))
