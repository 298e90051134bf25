"""A doctor for training runs: it names what is wrong, with the evidence and the remedy."""

from fusedstep.doctor.diagnosis import Doctor
from fusedstep.doctor.measure import dead_part
from fusedstep.doctor.recorder import RunRecorder
from fusedstep.doctor.thresholds import Thresholds
from fusedstep.doctor.verdict import Verdict

__all__ = ["Doctor", "RunRecorder", "Thresholds", "Verdict", "dead_part"]
