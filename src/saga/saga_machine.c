/*-------------------------------------------------------------------------
 *
 * saga_machine.c
 *	  Every legal state transition of sagas and steps.
 *
 * The arrays are the specification.  States are written by saga_set_status()
 * and saga_set_step() in saga_advance.c and by nothing else; both ask
 * machine_next().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "saga/saga.h"
#include "saga/saga_machine.h"

static const char *const saga_states[] = {
	"running", "paused", "suspended", "compensating",
	"completed", "compensated", "failed", NULL
};

static const char *const saga_events[] = {
	"all_done", "fail", "fail_nothing_done", "suspend", "all_undone",
	"nothing_undone", "pause", "resume_forward", "resume_backward",
	"retry_forward", "retry_backward", "cancel", "cancel_nothing_done",
	"abandon", "undo", "pivot_done", NULL
};

static const Transition saga_transitions[] = {
	{SAGA_RUNNING, SAGA_EVENT_ALL_DONE, SAGA_COMPLETED,
	"every step is completed, skipped, or failed and optional"},
	{SAGA_RUNNING, SAGA_EVENT_FAIL, SAGA_COMPENSATING,
	"a step failed or the deadline passed before the pivot, and something can be undone"},
	{SAGA_RUNNING, SAGA_EVENT_FAIL_NOTHING_DONE, SAGA_FAILED,
	"a step failed or the deadline passed, and nothing has to be undone"},
	{SAGA_RUNNING, SAGA_EVENT_SUSPEND, SAGA_SUSPENDED,
	"a step failed after the pivot or under on_exhausted suspend, or cannot be run"},
	{SAGA_RUNNING, SAGA_EVENT_PAUSE, SAGA_PAUSED,
	"an operator asked for it"},
	{SAGA_RUNNING, SAGA_EVENT_CANCEL, SAGA_COMPENSATING,
	"cancelled with something to undo"},
	{SAGA_RUNNING, SAGA_EVENT_CANCEL_NOTHING_DONE, SAGA_FAILED,
	"cancelled with nothing to undo"},
	{SAGA_RUNNING, SAGA_EVENT_ABANDON, SAGA_FAILED,
	"an operator gave it up"},

	{SAGA_COMPENSATING, SAGA_EVENT_ALL_UNDONE, SAGA_COMPENSATED,
	"every compensation is done or was skipped by hand, at least one is done"},
	{SAGA_COMPENSATING, SAGA_EVENT_NOTHING_UNDONE, SAGA_FAILED,
	"every compensation was skipped by hand, or in the end nothing had to be undone"},
	{SAGA_COMPENSATING, SAGA_EVENT_SUSPEND, SAGA_SUSPENDED,
	"a compensation failed for good or cannot be run"},
	{SAGA_COMPENSATING, SAGA_EVENT_PAUSE, SAGA_PAUSED,
	"an operator asked for it"},
	{SAGA_COMPENSATING, SAGA_EVENT_ABANDON, SAGA_FAILED,
	"an operator gave it up"},
	{SAGA_COMPENSATING, SAGA_EVENT_PIVOT_DONE, SAGA_RUNNING,
	"the pivot was in somebody's hands when the saga turned back, and is completed"},

	{SAGA_PAUSED, SAGA_EVENT_RESUME_FORWARD, SAGA_RUNNING,
	"an operator resumed it on its way forward"},
	{SAGA_PAUSED, SAGA_EVENT_RESUME_BACKWARD, SAGA_COMPENSATING,
	"an operator resumed it on its way back"},
	{SAGA_PAUSED, SAGA_EVENT_CANCEL, SAGA_COMPENSATING,
	"cancelled with something to undo"},
	{SAGA_PAUSED, SAGA_EVENT_CANCEL_NOTHING_DONE, SAGA_FAILED,
	"cancelled with nothing to undo"},
	{SAGA_PAUSED, SAGA_EVENT_ABANDON, SAGA_FAILED,
	"an operator gave it up"},

	{SAGA_SUSPENDED, SAGA_EVENT_RETRY_FORWARD, SAGA_RUNNING,
	"an operator retried or skipped what failed"},
	{SAGA_SUSPENDED, SAGA_EVENT_RETRY_BACKWARD, SAGA_COMPENSATING,
	"an operator retried or skipped the compensation that failed"},
	{SAGA_SUSPENDED, SAGA_EVENT_CANCEL, SAGA_COMPENSATING,
	"cancelled with something to undo"},
	{SAGA_SUSPENDED, SAGA_EVENT_CANCEL_NOTHING_DONE, SAGA_FAILED,
	"cancelled with nothing to undo"},
	{SAGA_SUSPENDED, SAGA_EVENT_ABANDON, SAGA_FAILED,
	"an operator gave it up"},

	{SAGA_COMPLETED, SAGA_EVENT_UNDO, SAGA_COMPENSATING,
	"it is a step of a saga that turned back"},
};

const StateMachine saga_machine = {
	"saga", saga_states, saga_events,
	saga_transitions, lengthof(saga_transitions)
};

static const char *const step_states[] = {
	"pending", "ready", "running", "completed", "skipped", "failed",
	"compensating", "compensated", "compensation_failed", NULL
};

static const char *const step_events[] = {
	"unblock", "start", "succeed", "retry", "exhaust", "not_wanted", "skip",
	"revive", "undo", "undone", "undo_exhaust", "undo_revive", "undo_skip",
	"withdraw", NULL
};

static const Transition step_transitions[] = {
	{STEP_PENDING, STEP_EVENT_UNBLOCK, STEP_READY,
	"the steps it comes after are finished and its trigger rule holds"},
	{STEP_PENDING, STEP_EVENT_NOT_WANTED, STEP_SKIPPED,
	"its trigger rule does not hold"},
	{STEP_PENDING, STEP_EVENT_SKIP, STEP_SKIPPED,
	"an operator skipped it"},
	{STEP_READY, STEP_EVENT_START, STEP_RUNNING,
	"an attempt begins"},
	{STEP_READY, STEP_EVENT_SKIP, STEP_SKIPPED,
	"an operator skipped it"},
	{STEP_RUNNING, STEP_EVENT_SKIP, STEP_SKIPPED,
	"an operator skipped what it waits for"},
	{STEP_RUNNING, STEP_EVENT_WITHDRAW, STEP_SKIPPED,
	"the saga turned back before anybody had begun with it, or was given up"},
	{STEP_RUNNING, STEP_EVENT_SUCCEED, STEP_COMPLETED,
	"the attempt returned"},
	{STEP_RUNNING, STEP_EVENT_NOT_WANTED, STEP_SKIPPED,
	"its condition is false"},
	{STEP_RUNNING, STEP_EVENT_RETRY, STEP_READY,
	"the attempt failed and there will be another"},
	{STEP_RUNNING, STEP_EVENT_EXHAUST, STEP_FAILED,
	"the attempt failed and was the last, or its error is not worth another"},
	{STEP_FAILED, STEP_EVENT_REVIVE, STEP_READY,
	"an operator retried it"},
	{STEP_FAILED, STEP_EVENT_SKIP, STEP_SKIPPED,
	"an operator skipped it"},
	{STEP_FAILED, STEP_EVENT_UNDO, STEP_COMPENSATING,
	"it may have had an effect: it was a task of a queue, or some of its items are completed"},
	{STEP_COMPLETED, STEP_EVENT_UNDO, STEP_COMPENSATING,
	"its compensation is due"},
	{STEP_COMPENSATING, STEP_EVENT_UNDONE, STEP_COMPENSATED,
	"the compensation returned"},
	{STEP_COMPENSATING, STEP_EVENT_UNDO_EXHAUST, STEP_COMPENSATION_FAILED,
	"the compensation failed for good"},
	{STEP_COMPENSATING, STEP_EVENT_UNDO_SKIP, STEP_SKIPPED,
	"an operator skipped the compensation"},
	{STEP_COMPENSATION_FAILED, STEP_EVENT_UNDO_REVIVE, STEP_COMPENSATING,
	"an operator retried the compensation"},
	{STEP_COMPENSATION_FAILED, STEP_EVENT_UNDO_SKIP, STEP_SKIPPED,
	"an operator skipped the compensation"},
};

const StateMachine step_machine = {
	"step", step_states, step_events,
	step_transitions, lengthof(step_transitions)
};

/* Called from _PG_init. */
void
saga_register(void)
{
	machine_register(&saga_machine);
	machine_register(&step_machine);
}
