from moekit_testing.assertions import CheckFailure as CheckFailure
from moekit_testing.case import Case as Case
from moekit_testing.parametrize import BoundCheck as BoundCheck
from moekit_testing.parametrize import checks_for as checks_for
from moekit_testing.parametrize import parametrize_checks as parametrize_checks

MOEKIT_API: int
