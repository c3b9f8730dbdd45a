/*-------------------------------------------------------------------------
 *
 * saga_lease.h
 *	  Tasks in the hands of workers outside; private to saga_lease.c and
 *	  saga_task_fail.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_SAGA_LEASE_H
#define COORD_SAGA_LEASE_H

#include "postgres.h"

#include "saga/saga_task.h"

/* The token $2 is good for the task. */
#define HELD \
	"t.token = $2 AND t.queue <> '' AND" \
	" (t.status = 'running' OR t.status = 'ready' AND t.lease_expires_at IS NOT NULL)"

/* A row of coord_internal.task, as far as its end needs it. */
typedef struct Lease
{
	int64		id;
	int64		saga_id;
	int			ordinal;
	int			item;
	Phase		phase;
	SagaDef    *def;
	Oid			owner;
	char	   *queue;
	int64		rank;
	int64		position;
	int			attempt;
	char	   *worker;
	TimestampTz claimed_at;
	TimestampTz expires_at;
} Lease;

#define LEASE_COLUMNS \
	" t.id, t.saga_id, t.ordinal, t.phase = 'compensation', t.definition, t.owner," \
	" t.queue, t.rank, t.position, t.attempt, t.worker, t.claimed_at, t.lease_expires_at, t.item"

typedef enum Refusal
{
	REFUSAL_NONE,				/* it is good after all: try again */
	REFUSAL_ENDED,				/* by this very token */
	REFUSAL_LOST,
	REFUSAL_CANCELLED
} Refusal;

/* saga_lease.c */
extern Lease *lease_read(MemoryContext context, uint64 rows, int64 **definitions);
extern void lease_get_definitions(Lease *leases, const int64 *definitions, int count);
extern const StepDef *lease_step(const Lease *lease);
extern Lease *lease_lock(int64 id, int64 token);
extern void lease_let_item_go(const Lease *lease);
extern void lease_tell(const Lease *leases, int count);
extern Refusal lease_refusal(int64 id, int64 token);
extern Datum lease_array(Datum *values, bool *nulls, int count, Oid type);

/* saga_task_fail.c */
extern bool task_fail_by_result(int64 id, int64 token, const char *error);

#endif							/* COORD_SAGA_LEASE_H */
