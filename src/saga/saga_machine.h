/*-------------------------------------------------------------------------
 *
 * saga_machine.h
 *	  States and events of sagas and steps.  The tables are in the .c file.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_SAGA_MACHINE_H
#define COORD_SAGA_MACHINE_H

#include "base/transition.h"

typedef enum SagaStatus
{
	SAGA_RUNNING,
	SAGA_PAUSED,
	SAGA_SUSPENDED,
	SAGA_COMPENSATING,
	SAGA_COMPLETED,
	SAGA_COMPENSATED,
	SAGA_FAILED
} SagaStatus;

typedef enum SagaEvent
{
	SAGA_EVENT_ALL_DONE,
	SAGA_EVENT_FAIL,
	SAGA_EVENT_FAIL_NOTHING_DONE,
	SAGA_EVENT_SUSPEND,
	SAGA_EVENT_ALL_UNDONE,
	SAGA_EVENT_NOTHING_UNDONE,
	SAGA_EVENT_PAUSE,
	SAGA_EVENT_RESUME_FORWARD,
	SAGA_EVENT_RESUME_BACKWARD,
	SAGA_EVENT_RETRY_FORWARD,
	SAGA_EVENT_RETRY_BACKWARD,
	SAGA_EVENT_CANCEL,
	SAGA_EVENT_CANCEL_NOTHING_DONE,
	SAGA_EVENT_ABANDON,
	SAGA_EVENT_UNDO,
	SAGA_EVENT_PIVOT_DONE
} SagaEvent;

typedef enum StepStatus
{
	STEP_PENDING,
	STEP_READY,
	STEP_RUNNING,
	STEP_COMPLETED,
	STEP_SKIPPED,
	STEP_FAILED,
	STEP_COMPENSATING,
	STEP_COMPENSATED,
	STEP_COMPENSATION_FAILED
} StepStatus;

typedef enum StepEvent
{
	STEP_EVENT_UNBLOCK,
	STEP_EVENT_START,
	STEP_EVENT_SUCCEED,
	STEP_EVENT_RETRY,
	STEP_EVENT_EXHAUST,
	STEP_EVENT_NOT_WANTED,
	STEP_EVENT_SKIP,
	STEP_EVENT_REVIVE,
	STEP_EVENT_UNDO,
	STEP_EVENT_UNDONE,
	STEP_EVENT_UNDO_EXHAUST,
	STEP_EVENT_UNDO_REVIVE,
	STEP_EVENT_UNDO_SKIP,
	STEP_EVENT_WITHDRAW
} StepEvent;

extern const StateMachine saga_machine;
extern const StateMachine step_machine;

static inline bool
saga_status_is_final(SagaStatus status)
{
	return status == SAGA_COMPLETED || status == SAGA_COMPENSATED ||
		status == SAGA_FAILED;
}

#endif							/* COORD_SAGA_MACHINE_H */
