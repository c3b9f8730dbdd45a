/*-------------------------------------------------------------------------
 *
 * saga_definition.h
 *	  What a saga is made of.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_SAGA_DEFINITION_H
#define COORD_SAGA_DEFINITION_H

#include "postgres.h"

#include "storage/lockdefs.h"
#include "utils/jsonpath.h"

#include "base/check.h"
#include "base/json.h"
#include "base/retry.h"

#define SAGA_NAME_MAX CHECK_NAME_MAX

typedef enum TriggerRule
{
	RULE_NONE_FAILED,
	RULE_ALL_SUCCESS,
	RULE_ALL_DONE,
	RULE_ONE_SUCCESS,
	RULE_ONE_FAILED,
	RULE_ALWAYS
} TriggerRule;

typedef enum StepKind
{
	STEP_LOCAL,					/* a function of this database */
	STEP_QUEUE,					/* a task for a worker outside */
	STEP_SIGNAL,				/* waits for saga_signal() */
	STEP_SLEEP,
	STEP_SAGA					/* another saga */
} StepKind;

typedef struct StepDef
{
	char	   *name;
	StepKind	kind;
	char	   *action;			/* schema-qualified; with a queue a label */
	char	   *compensation;	/* the same, or NULL */
	char	   *queue;
	char	   *server;			/* where a local step's functions are; NULL: here */
	JsonPath   *for_each;		/* or NULL */
	int			max_parallel;	/* 0: no limit */
	int			max_failed_items;
	char	   *signal;
	bool		continue_on_timeout;
	int64		wait_us;		/* of a signal or a sleep; 0: for ever */
	char	   *saga;
	JsonPath   *input;			/* of that saga */
	int			nafter;
	int		   *after;			/* ordinals */
	int			nbefore;
	int		   *before;			/* ordinals of the steps that wait for this */
	bool		pivot;
	bool		optional;
	bool		past_pivot;		/* comes after the pivot in the graph */
	bool		vote;			/* it is a participant's vote: see saga_participant.c */
	bool		must;			/* it is what a participant has to do once it is decided */
	TriggerRule rule;
	JsonPath   *condition;		/* or NULL */
	int			timeout_ms;		/* 0: none */
	RetryPolicy retry;

	int			rank;			/* of its name in jsonb's order */

	/* This process's experience with its functions; see saga_call.c. */
	struct CallMemory *memory[2];
} StepDef;

typedef struct SagaDef
{
	int64		id;				/* coord_internal.saga_version.id */
	char	   *name;
	int			version;
	char	   *search_path;
	Interval   *deadline;		/* or NULL */
	bool		suspend_on_exhausted;
	bool		waits;			/* may have tasks, signals, or sagas as steps */
	bool		signals;		/* has a step that waits for one */
	bool		participant;	/* of a two-phase commit: see saga_participant.c */
	int			nsteps;
	StepDef    *steps;
	int			pivot;			/* ordinal, -1: none */
	JsonPart   *parts;			/* "results" with no result in it, by rank */
} SagaDef;

extern SagaDef *saga_definition_parse(Jsonb *document, bool resolve);
extern SagaDef *saga_definition_by_id(int64 id);
extern int64 saga_define_participant(const char *name, Jsonb *document);
extern bool saga_name_is_reserved(const char *name);
extern void saga_check_not_reserved(const char *name);
extern int64 saga_definition_lookup(const char *name, int version);
extern void saga_definition_check_execute(const SagaDef *def, Oid role);
extern Oid	saga_function_usable(const char *qualified, Oid role);
extern void saga_lock_name(const char *name, LOCKMODE mode);
extern const char *saga_function_problem(Oid function, bool vote);
extern bool saga_step_can_be_undone(const StepDef *step);
extern int	saga_step_ordinal(const SagaDef *def, const char *name);

#endif							/* COORD_SAGA_DEFINITION_H */
