/*-------------------------------------------------------------------------
 *
 * saga_task.h
 *	  Steps that are handed out: tasks, their queues, what comes back.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_SAGA_TASK_H
#define COORD_SAGA_TASK_H

#include "postgres.h"

#include "storage/itemptr.h"
#include "utils/jsonb.h"

#include "saga/saga_instance.h"

/* The "item" of a task whose step is not for each of something. */
#define NO_ITEM (-1)

#define IDEMPOTENCY_KEY_SIZE (CHECK_NAME_MAX + 64)

/* A row of coord_internal.task, as far as whoever carries it out needs it. */
typedef struct Task
{
	int64		id;
	ItemPointerData tid;
	int64		saga_id;
	int			ordinal;
	int			item;			/* from 0; NO_ITEM */
	Phase		phase;
	int			attempt;		/* the one in progress, from 1 */
	Jsonb	   *item_value;		/* of an item */
	Jsonb	   *given;			/* compensation of an item: its result, or NULL */
} Task;

/* A row of coord_internal.saga: which, and whether it is still the same. */
typedef struct SagaRow
{
	int64		id;
	ItemPointerData tid;
	TransactionId xmin;
} SagaRow;

/* saga_store.c */
extern Saga **saga_read(Turn *turn, SagaRow *rows, int count, int *nread);
extern Saga *saga_find_read(Saga **sagas, int count, int64 id);

/* saga_call.c */
extern Jsonb *saga_document(const Saga *saga, int ordinal, Phase phase, const Task *task);
extern char *saga_task_name(const SagaDef *def, int ordinal, int item);
extern void saga_idempotency_key(char *key, size_t size, const Saga *saga, int ordinal,
								 Phase phase, const Task *task);

/* saga_events.c, saga_handout.c, saga_takein.c */
extern void saga_load_events(Turn *turn, Saga **sagas, int count);
extern void saga_take_in(Turn *turn, Saga *saga);
extern void saga_hand_out(Turn *turn, Saga *saga, int ordinal);
extern void saga_hand_out_undoing(Turn *turn, Saga *saga, int ordinal);
extern bool saga_hurry_tasks(const Saga *saga, int ordinal, Phase phase);
extern bool saga_withdraw(Turn *turn, Saga *saga);
extern bool saga_withdraw_step(Turn *turn, Saga *saga, int ordinal);
extern void saga_skip_waiting(Saga *saga, int ordinal, Phase phase);
extern TimestampTz saga_waits_until(const Saga *saga);
extern void saga_write_waits(Turn *turn);
extern void saga_forget_waits(Turn *turn, Saga **sagas, int count);
extern void saga_tell_parents(Saga **sagas, int count);
extern void saga_forget_gone_tasks(void);
extern void saga_let_items_go(int64 saga, const SagaDef *def, int priority, Oid owner,
							  int ordinal, Phase phase, int item, int finished);
extern bool saga_any_child_undone(const Saga *saga);
extern bool saga_any_item_undone(const Saga *saga, int ordinal);
extern void saga_tell(const int64 *ids, const int *priorities, const Oid *owners, int count);

/* saga_queue.c; queue_places() may read tables */
extern int64 queue_places(const char *queue, int64 rank, int64 definition, int count);
extern void queue_ready_at_commit(const char *queue, int64 rank, int64 position);
extern void queue_resumed_at_commit(const char *queue);
extern void queue_due_at_commit(const char *queue, TimestampTz when);

/* saga_queue_config.c */
extern void queue_use(const char *queue, Oid role);

/* saga_task_turn.c */
extern int	saga_carry_out(Turn *turn, int64 *ids, int count, int *leftover, bool *fresh);

/* saga_turn.c */
extern bool saga_turn_is_over(const Turn *turn);

#endif							/* COORD_SAGA_TASK_H */
