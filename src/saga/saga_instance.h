/*-------------------------------------------------------------------------
 *
 * saga_instance.h
 *	  A saga in hand: loaded, advanced, written back.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_SAGA_INSTANCE_H
#define COORD_SAGA_INSTANCE_H

#include "postgres.h"

#include "storage/itemptr.h"
#include "utils/jsonb.h"
#include "utils/uuid.h"

#include "base/in_hand.h"
#include "base/identity.h"
#include "saga/saga.h"
#include "saga/saga_definition.h"
#include "saga/saga_machine.h"

typedef enum Phase
{
	PHASE_ACTION,
	PHASE_COMPENSATION
} Phase;

/* What this process has seen of one function. */
typedef struct CallMemory
{
	uint32		calls;
	double		mean_us;		/* moving average */
	int			distrust;		/* > 0: run in a subtransaction */
	bool		alone;			/* run in a transaction of its own */
	bool		alone_next;		/* the same, once */
} CallMemory;

typedef struct StepState
{
	StepStatus	status;
	Phase		phase;
	int			attempt;		/* of this phase */
	int			sequence;		/* order of completion, from 1 */
	int			blocked_by;		/* steps in "after" that are not finished */
	bool		has_result;		/* "result" is the step's; NULL is null */
	bool		dirty;
	Jsonb	   *result;
	char	   *error;
	char	   *sqlstate;
	char	   *detail;
	char	   *context;
	TimestampTz next_attempt_at;	/* 0: at once */
	TimestampTz started_at;
	TimestampTz finished_at;
	bool		waiting;		/* for tasks, a signal, a time or a saga */
	int64		child;			/* the saga that it is; 0: none yet */
	int			items;			/* for each of how many; 0: not known yet */
	bool		any_completed;	/* of the items of a step that fails now */
} StepState;

typedef struct Saga
{
	int64		id;
	ItemPointerData tid;
	SagaDef    *def;
	int64		parent;			/* the saga that has it as a step; 0: none */
	Oid			owner;
	SagaStatus	status;
	SagaStatus	stored_status;
	bool		backward;
	char	   *cause;
	char	   *error;
	char	   *key;
	Jsonb	   *input;
	int			priority;
	bool		has_correlation;
	char		correlation_id[UUID_LEN * 2 + 5];
	TimestampTz created_at;
	TimestampTz start_at;		/* not before; 0: at once */
	TimestampTz started_at;		/* 0: not yet */
	TimestampTz wake_at;		/* 0: never */
	TimestampTz deadline_at;	/* 0: none */
	TimestampTz finished_at;
	int			next_sequence;
	bool		has_steps;		/* rows in saga_step */
	bool		dirty;
	bool		input_dirty;
	bool		not_now;		/* its next call wants a fresh transaction */
	bool		elsewhere;		/* its next call cannot be made here */
	StepState  *steps;
	const struct Task *task;	/* what is being called was handed out */
	bool		parked;			/* completed, and kept for the saga it is a step of */

	/* Made by saga_prepare() for saga_advance(). */
	JsonPart   *results;		/* by rank */
	JsonObject *growing;		/* the same, of a saga of many steps; or NULL */
	int			unfinished;		/* steps not in a final state */
	int		   *ready;			/* ordinals, a ring of nsteps */
	int			ready_head;
	int			ready_count;
	int		   *undo;			/* ordinals to compensate, in order */
	int			nundo;
	int			undo_at;

	/* Made by saga_load_events() and saga_take_in(). */
	struct SagaEvents *events;	/* NULL: nothing can come from outside */
	int			nwaiting;		/* steps that wait */
	int			nprobes;		/* of them, single tasks of coord's own workers */
	TimestampTz look_again_at;	/* 0: when something comes */
} Saga;

/* A row for coord_internal.saga_log. */
typedef struct LogRow
{
	int64		saga;
	const char *name;
	Oid			owner;
	TimestampTz at;
	const char *event;
	const char *step;
	int			phase;			/* -1: none */
	int			attempt;
	Oid			role;
	const char *reason;
	const char *error;
	const char *sqlstate;
	const char *detail;
	const char *context;
} LogRow;

/* Everything that one transaction of the engine carries. */
typedef struct Turn
{
	MemoryContext context;		/* until the transaction ends */
	MemoryContext call_context; /* until the call ends */
	bool		guard_all;		/* every call in a subtransaction */
	bool		worker;
	TimestampTz started;		/* system clock, for the budget */
	TimestampTz loaded;			/* the same, when the sagas were loaded */
	uint32		request_serial;
	DatabaseSlot *slot;

	/* The role and definition that user code currently runs as, if any. */
	bool		in_user;
	UserScope	user;
	Oid			user_role;
	const SagaDef *user_def;

	/* Functions resolved in this transaction, by address of the name. */
	struct HTAB *functions;

	int			nloaded;		/* sagas claimed */
	int			calls;
	int			subtransactions;
	bool		end;			/* commit before another call */
	bool		alone;			/* the last call wanted a transaction of its own */
	TimestampTz vote_until;		/* end of a vote that is called here; 0: none */

	/* The call in progress, for whoever catches its error. */
	Saga	   *calling;
	int			calling_ordinal;
	Phase		calling_phase;

	/* To be written with the sagas; see saga_handout.c. */
	List	   *handouts;
	List	   *done_tasks;		/* int64 * */
	List	   *consumed;		/* signals, int64 * */

	LogRow	   *log;
	int			nlog;
	int			log_size;
} Turn;

/* Values of one column of the rows to be written, for unnest(). */
typedef struct Column
{
	Oid			type;
	Datum	   *values;
	bool	   *nulls;
} Column;

/* saga_store.c */
extern void column_init(Column *columns, int ncolumns, const Oid *types, int nrows);
extern void column_array(Datum *values, const Column *columns, int ncolumns, int nrows);
extern void column_text(Column *column, int row, const char *text);
extern void column_time(Column *column, int row, TimestampTz time);
extern void column_jsonb(Column *column, int row, Jsonb *jsonb);
extern Saga **saga_load(Turn *turn, const int64 *ids, int count, TimestampTz due, int *nloaded);
extern void saga_flush(Turn *turn, Saga **sagas, int count);
extern void saga_log(Turn *turn, const LogRow *row);
extern const char *saga_phase_name(int phase);

/* saga_advance.c */
extern void saga_prepare(Saga *saga);
extern void saga_set_result(Saga *saga, int ordinal, Jsonb *result);
extern void saga_advance(Turn *turn, Saga *saga);
extern void saga_set_status(Saga *saga, SagaEvent event);
extern void saga_set_step(Saga *saga, int ordinal, StepEvent event);
extern void saga_turn_back(Saga *saga, bool cancelled, const char *cause, const char *error);
extern bool saga_pivot_done(const Saga *saga);
extern void saga_settle(Saga *saga);
extern void saga_step_finished(Saga *saga, int ordinal);
extern void saga_suspend(Saga *saga, const char *error);
extern void saga_undo(Saga *saga, const char *error);
extern void saga_abandon(Saga *saga, const char *error);
extern int	saga_attempt_limit(const StepDef *step, Phase phase);
extern bool saga_is_worth_retrying(const StepDef *step, Phase phase, const char *sqlstate);
extern void saga_attempt_failed(Turn *turn, Saga *saga, int ordinal, ErrorData *error);
extern void saga_step_failed(Turn *turn, Saga *saga, int ordinal, char *error, char *sqlstate,
							 char *detail, char *context);
extern void saga_step_succeeded(Turn *turn, Saga *saga, int ordinal, Jsonb *result);
extern void saga_step_not_wanted(Saga *saga, int ordinal);
extern void saga_prepare_results(Saga *saga);

/* saga_call.c */
typedef enum CallOutcome
{
	CALL_SUCCEEDED,
	CALL_SKIPPED,				/* the condition is false */
	CALL_FAILED,
	CALL_UNRUNNABLE,			/* no function, no privilege, no owner */
	CALL_ELSEWHERE,				/* not in this session; a worker can */
	CALL_NOT_NOW				/* end this transaction first */
} CallOutcome;

typedef struct CallResult
{
	CallOutcome outcome;
	Jsonb	   *result;			/* CALL_SUCCEEDED, in the turn's context */
	ErrorData  *error;			/* CALL_FAILED, the same */
	char	   *reason;			/* CALL_UNRUNNABLE, the same */
} CallResult;

/* How long a call is going to take, as far as this process knows. */
typedef enum Pace
{
	PACE_UNKNOWN,
	PACE_QUICK,
	PACE_SLOW
} Pace;

extern Pace saga_call_pace(const StepDef *step, Phase phase);
extern void saga_learn(Saga *saga, int ordinal, Phase phase, int64 us);
extern char *saga_result_failure(Jsonb *result);
extern void saga_call(Turn *turn, Saga *saga, int ordinal, Phase phase, CallResult *result);
extern void saga_leave_user(Turn *turn);
extern void saga_distrust(SagaDef *def, int ordinal, Phase phase);

/* saga_hand.c */
#define SAGA_MAX_BATCH 256

extern void saga_turn_begin(Turn *turn, bool worker);
extern void saga_turn_end(const Turn *turn);
extern void saga_take_in_hand(Turn *turn, const int64 *ids, int count);
extern bool saga_is_in_hand(int64 id);
extern bool saga_has_in_hand(void);

/* in_hand.c */

/* saga_verbs.c */
extern void saga_apply_requests_here(void);
extern void saga_apply_requests_to(Turn *turn, Saga **sagas, int count);

extern bool saga_cancel_participant(int64 id, Oid role, const char *reason);

/* saga_signal.c */
extern void saga_send_signal(int64 id, const char *signal, Oid role);

/* saga_participant.c */
extern void saga_participant_key(char *key, size_t size, const Saga *saga, int ordinal,
								 Phase phase);
extern Jsonb *saga_participant_document(const Saga *saga, const char *idempotency_key);
extern const char *saga_participant_phase(const Saga *saga, int ordinal, Phase phase);
extern int64 saga_participant_gtid(const Saga *saga);

/* saga_archive.c */
extern void saga_ensure_partitions(bool ahead_too);

/* saga_start.c */
typedef struct StartOptions
{
	char	   *name;
	Jsonb	   *input;
	char	   *key;
	pg_uuid_t  *correlation_id;
	int			version;		/* 0: the active one */
	TimestampTz start_at;		/* 0: now */
	Interval   *deadline;		/* NULL: the definition's */
	int			priority;
	Jsonb	   *labels;
	char	   *on_existing;
	int64		hold_us;		/* first wake this much later: the caller runs it */
	int64		parent;			/* the saga that it is a step of; 0: none */
	int64		definition;		/* instead of name and version; 0: by those */
	Oid			owner;			/* InvalidOid: the current user */
} StartOptions;

extern int64 saga_start(const StartOptions *options, bool *existing);

/* saga_find.c */
extern char *saga_status_or_error(int64 id);
extern bool saga_has_nothing_to_wait_for(int64 id, char **status);
extern char *saga_visible_status(int64 id);
extern char *saga_repairable_status(int64 id, const char *verb);

#endif							/* COORD_SAGA_INSTANCE_H */
