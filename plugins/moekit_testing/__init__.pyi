from moekit.component import Verb
from moekit_testing.assertions import CheckFailure as CheckFailure
from moekit_testing.case import Case as Case
from moekit_testing.foreign import Seen as Seen
from moekit_testing.foreign import check_foreign as check_foreign
from moekit_testing.parametrize import parametrize_checks as parametrize_checks
from moekit_testing.running import BoundCheck as BoundCheck
from moekit_testing.running import checks_for as checks_for

MOEKIT_API: int

def moekit_verbs() -> list[Verb]: ...
