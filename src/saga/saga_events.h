/*-------------------------------------------------------------------------
 *
 * saga_events.h
 *	  What happens to a waiting saga, and the steps that wait.
 *
 * Shared by saga_events.c (reading what has happened), saga_handout.c (beginning
 * to wait) and saga_takein.c (the end of it).
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_SAGA_EVENTS_H
#define COORD_SAGA_EVENTS_H

#include "postgres.h"

#include "base/query.h"
#include "saga/saga_task.h"

/* Tasks of one phase of one step. */
typedef struct TaskEvent
{
	int			ordinal;
	Phase		phase;
	bool		items;
	/* A single task. */
	int64		id;
	char	   *status;
	int			attempt;
	Jsonb	   *result;
	TimestampTz started_at;
	TimestampTz finished_at;
	/* Items: how many. */
	int			open;
	int			completed;
	int			failed;
	int			stopped;
	int			cancelled;
	/* Of the task that failed, or the first item that did. */
	char	   *error;
	char	   *sqlstate;
	char	   *detail;
	char	   *context;
} TaskEvent;

/* A signal that nobody has waited for yet. */
typedef struct Signal
{
	int64		id;
	char	   *name;
	Jsonb	   *payload;
	bool		consumed;
} Signal;

/* A saga that is a step. */
typedef struct ChildEvent
{
	int64		id;
	char	   *status;
	char	   *error;
	Jsonb	   *output;
} ChildEvent;

/* What the saga that this one is a step of wants. */
typedef struct ParentEvent
{
	bool		gone;
	bool		abandoned;		/* that is why */
	bool		backward;
	bool		undo;
} ParentEvent;

typedef struct SagaEvents
{
	List	   *tasks;
	List	   *signals;		/* in the order in which they came */
	List	   *children;
	ParentEvent *parent;
} SagaEvents;

/* Has it anything that may come from outside? */
static inline bool
has_events(const Saga *saga)
{
	return saga->def->waits || saga->parent != 0;
}

/* Is the step a task, or many? */
static inline bool
step_is_tasks(const StepDef *step)
{
	return step->kind == STEP_LOCAL || step->kind == STEP_QUEUE;
}

/* Does it teach how long a call takes? */
static inline bool
is_probe(const StepDef *step)
{
	return step->kind == STEP_LOCAL && step->for_each == NULL;
}

/* saga_handout.c */
extern void saga_hand_out_later(Turn *turn, const Saga *saga, int ordinal, Phase phase,
								bool null_compensation, TimestampTz available_at);
extern void saga_begin_waiting(Saga *saga, int ordinal);
extern void saga_end_waiting(Saga *saga, int ordinal);
extern Signal *saga_take_signal(Turn *turn, Saga *saga, const char *name);
extern void saga_signal_came(Turn *turn, Saga *saga, int ordinal, const Signal *signal);

#endif							/* COORD_SAGA_EVENTS_H */
