/*-------------------------------------------------------------------------
 *
 * saga_definition.c
 *	  What a saga is made of: reading and checking definitions.
 *
 * A definition is a JSON document, the same whether it came from
 * coord.saga_define(), coord.saga_define_json() or the table.  One parser reads
 * all three into a SagaDef; with "resolve" it also looks up the functions, as
 * it must when somebody defines, and leaves that out when the document comes
 * from the table.
 *
 * Versions are immutable and their ids never used again, so a parsed SagaDef
 * stays valid as long as the process lives.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "parser/parse_func.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/numeric.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/compat.h"
#include "base/identity.h"
#include "base/json.h"
#include "base/query.h"
#include "saga/saga_definition.h"
#include "twophase/twophase.h"


static const char *const rule_names[] = {
	"none_failed", "all_success", "all_done", "one_success", "one_failed",
	"always", NULL
};

/* Members of a step by kind.  Which kind it is, its members say. */
static const char *const call_members[] = {
	"name", "action", "compensation", "after", "queue", "server", "pivot", "optional",
	"condition", "trigger_rule", "for_each", "max_parallel", "max_failed_items",
	"timeout", "max_attempts", "retry_delay", "retry_backoff", "retry_max_delay",
	"retry_on", NULL
};

static const char *const signal_members[] = {
	"name", "signal", "timeout", "on_timeout", "after", "condition", NULL
};

static const char *const sleep_members[] = {
	"name", "duration", "after", "condition", NULL
};

static const char *const saga_step_members[] = {
	"name", "saga", "input", "after", "condition", NULL
};

static const char *const saga_members[] = {
	"steps", "deadline", "on_exhausted", "record_events", NULL
};

/* The same of what saga_participant.c makes. */
static const char *const participant_members[] = {
	"steps", "participant", NULL
};

/*
 * Parsed definitions by id, of the extension whose schema has this oid: after
 * DROP and CREATE EXTENSION ids begin again.  TopMemoryContext.
 */
static HTAB *definitions = NULL;
static Oid	definitions_namespace = InvalidOid;

typedef struct DefinitionEntry
{
	int64		id;
	SagaDef    *def;
} DefinitionEntry;

/* A mistake in a step; step_context() says which. */
#define STEP_ERROR(code, ...) \
	ereport(ERROR, (errcode(code), errmsg(__VA_ARGS__)))

static void
step_context(void *step)
{
	errcontext("step \"%s\"", ((StepDef *) step)->name);
}

static bool
in_list(const char *const *list, const char *name, int length)
{
	for (; *list != NULL; list++)
	{
		if (strlen(*list) == length && strncmp(*list, name, length) == 0)
			return true;
	}
	return false;
}

/*
 * A member as text: NULL when absent or null; arrays and objects are errors.
 */
static char *
member_text(Jsonb *object, const char *key)
{
	JsonbValue	value;

	if (json_get(object, key, &value) == NULL || value.type == jbvNull)
		return NULL;
	if (value.type != jbvString && value.type != jbvNumeric && value.type != jbvBool)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" must be a single value", key)));
	return json_get_text(object, key);
}

static bool
member_bool(Jsonb *object, const char *key)
{
	JsonbValue	value;

	if (json_get(object, key, &value) == NULL || value.type == jbvNull)
		return false;
	if (value.type != jbvBool)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" must be true or false", key)));
	return value.val.boolean;
}

/* A member that is an array of strings, as a List of C strings. */
static List *
member_strings(Jsonb *object, const char *key, bool *present)
{
	JsonbValue	value;
	List	   *result = NIL;
	JsonbIterator *iterator;
	JsonbIteratorToken token;

	*present = false;
	if (json_get(object, key, &value) == NULL || value.type == jbvNull)
		return NIL;
	if (value.type != jbvBinary || !JsonContainerIsArray(value.val.binary.data))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" must be an array of strings", key)));
	*present = true;
	iterator = JsonbIteratorInit(value.val.binary.data);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token != WJB_ELEM)
			continue;
		if (value.type != jbvString)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("\"%s\" must be an array of strings", key)));
		result = lappend(result, pnstrdup(value.val.string.val, value.val.string.len));
	}
	return result;
}

/* An interval member, NULL when absent; it must be finite and positive. */
static Interval *
member_interval(Jsonb *object, const char *key, bool zero_allowed)
{
	char	   *text = member_text(object, key);
	Interval   *interval;
	int64		us;

	if (text == NULL)
		return NULL;
	interval = DatumGetIntervalP(DirectFunctionCall3(interval_in,
													 CStringGetDatum(text),
													 ObjectIdGetDatum(InvalidOid),
													 Int32GetDatum(-1)));
	us = coord_interval_is_finite(interval) ? clock_interval_us(interval) : -1;
	if (us < 0 || (us == 0 && !zero_allowed))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg(zero_allowed ? "\"%s\" must not be negative" :
						"\"%s\" must be a positive interval", key),
				 errdetail("It is \"%s\".", text)));
	return interval;
}

static double
member_number(Jsonb *object, const char *key, double default_value)
{
	JsonbValue	value;

	if (json_get(object, key, &value) == NULL || value.type == jbvNull)
		return default_value;
	if (value.type != jbvNumeric)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" must be a number", key)));
	return DatumGetFloat8(DirectFunctionCall1(numeric_float8_no_overflow,
											  NumericGetDatum(value.val.numeric)));
}

/* An integer member within [1, INT_MAX], 0 when absent. */
static int
member_count(Jsonb *object, const char *key)
{
	double		number = member_number(object, key, 0);
	JsonbValue	value;

	if (json_get(object, key, &value) == NULL || value.type == jbvNull)
		return 0;
	if (!(number >= 1 && number <= PG_INT32_MAX) || number != (int) number)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" must be a positive integer", key)));
	return (int) number;
}

/*
 * The function f(jsonb) that a stored, schema-qualified name means, if it
 * exists and "role" may use its schema; else InvalidOid.  Raises nothing but
 * what a name that was never stored would raise.
 */
Oid
saga_function_usable(const char *qualified, Oid role)
{
	List	   *names = coord_qualified_name(qualified);
	Oid			argtypes[1] = {JSONBOID};
	oidvector  *arguments;
	Oid			namespace;
	Oid			result;

	if (list_length(names) != 2)
		return InvalidOid;
	namespace = get_namespace_oid(strVal(linitial(names)), true);
	if (!OidIsValid(namespace) ||
		coord_schema_aclcheck(namespace, role) != ACLCHECK_OK)
		return InvalidOid;
	arguments = buildoidvector(argtypes, 1);
	result = GetSysCacheOid3(PROCNAMEARGSNSP, Anum_pg_proc_oid,
							 CStringGetDatum(strVal(lsecond(names))),
							 PointerGetDatum(arguments),
							 ObjectIdGetDatum(namespace));
	pfree(arguments);
	list_free_deep(names);
	return result;
}

/*
 * Why a function cannot be an action or a compensation, or with "vote" that of a
 * participant's vote; NULL: it can.
 */
const char *
saga_function_problem(Oid function, bool vote)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	Form_pg_proc proc;
	const char *problem = NULL;

	if (!HeapTupleIsValid(tuple))
		return "It does not exist any more.";
	proc = (Form_pg_proc) GETSTRUCT(tuple);
	if (proc->prokind != PROKIND_FUNCTION)
		problem = "It is not a function.";
	else if (isAnyTempNamespace(proc->pronamespace))
		problem = "It is in a temporary schema.";
	else if (proc->proretset)
		problem = "It returns a set.";
	else if (vote ? proc->prorettype != BOOLOID :
			 proc->prorettype != JSONBOID && proc->prorettype != VOIDOID)
		problem = psprintf("It returns %s.", format_type_be(proc->prorettype));
	ReleaseSysCache(tuple);
	return problem;
}

static void
check_function(Oid function, const char *name, const char *member, const StepDef *step)
{
	bool		vote = step->vote && strcmp(member, "action") == 0;
	const char *problem = saga_function_problem(function, vote);

	if (problem != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_FUNCTION_DEFINITION),
				 errmsg("%s cannot be the %s of step \"%s\"", name, member, step->name),
				 errdetail("%s", problem),
				 vote ? errhint("It must be a function f(jsonb) that returns boolean.") :
				 errhint("It must be a function f(jsonb) that returns jsonb or void.")));
}

/*
 * Check the function of a step and return its schema-qualified name.
 */
static char *
resolve_function(StepDef *step, const char *member, const char *name)
{
	Oid			argtypes[1] = {JSONBOID};
	Oid			oid = LookupFuncName(coord_qualified_name(name), 1, argtypes, true);
	HeapTuple	tuple;
	Form_pg_proc proc;
	char	   *result;

	if (!OidIsValid(oid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("function %s(jsonb) does not exist", name),
				 errdetail("It is the %s of step \"%s\".", member, step->name),
				 errhint("An action or compensation is a function with one argument of type jsonb, looked up in the current search_path and stored with its schema.")));

	check_function(oid, name, member, step);
	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(oid));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", oid);
	proc = (Form_pg_proc) GETSTRUCT(tuple);
	result = quote_qualified_identifier(get_namespace_name(proc->pronamespace),
										NameStr(proc->proname));
	ReleaseSysCache(tuple);

	if (coord_function_aclcheck(oid, GetUserId()) != ACLCHECK_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for function %s", result),
				 errdetail("It is the %s of step \"%s\".", member, step->name)));
	return result;
}

/* The name of a function of another server, which is looked up there, as SQL has it. */
static char *
remote_function(const char *name)
{
	List	   *names = coord_qualified_name(name);

	if (list_length(names) > 2)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("invalid name of a function: \"%s\"", name)));
	return NameListToQuotedString(names);
}

/* Refuse members that no step has. */
static void
check_members(Jsonb *object, const char *const *known, const char *what)
{
	JsonbIterator *iterator = JsonbIteratorInit(&object->root);
	JsonbIteratorToken token;
	JsonbValue	value;
	JsonbValue	member;

	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		char	   *key;

		if (token != WJB_KEY)
			continue;
		key = pnstrdup(value.val.string.val, value.val.string.len);
		(void) json_get(object, key, &member);
		if (in_list(known, key, strlen(key)))
			continue;
		if (known != saga_members && known != participant_members && member.type == jbvNull)
			continue;
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown option \"%s\" of %s", key, what)));
	}
}

static void
parse_retry(StepDef *step, Jsonb *object)
{
	RetryPolicy *retry = &step->retry;
	Interval   *interval;
	List	   *codes;
	ListCell   *cell;
	bool		present;

	retry->max_attempts = member_count(object, "max_attempts");
	interval = member_interval(object, "retry_delay", true);
	retry->delay = interval ? clock_interval_us(interval) : USECS_PER_SEC;
	interval = member_interval(object, "retry_max_delay", true);
	retry->max_delay = interval ? clock_interval_us(interval) : 300 * USECS_PER_SEC;
	retry->backoff = member_number(object, "retry_backoff", 2);
	if (!(retry->backoff >= 1 && retry->backoff <= 1000))
		STEP_ERROR(ERRCODE_INVALID_PARAMETER_VALUE,
				   "\"retry_backoff\" must be between 1 and 1000");

	codes = member_strings(object, "retry_on", &present);
	if (present && codes == NIL)
		STEP_ERROR(ERRCODE_INVALID_PARAMETER_VALUE,
				   "\"retry_on\" must not be empty");
	if (present && retry->max_attempts == 1)
		STEP_ERROR(ERRCODE_INVALID_PARAMETER_VALUE,
				   "\"retry_on\" has no effect with \"max_attempts\" 1");
	retry->nretry_on = list_length(codes);
	retry->retry_on = palloc0(sizeof(char *) * (retry->nretry_on + 1));
	foreach(cell, codes)
	{
		char	   *code = lfirst(cell);

		if (!retry_code_is_valid(code))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("\"%s\" is not an SQLSTATE", code),
					 errhint("\"retry_on\" takes five-character codes, two-character classes, or '*'.")));
		retry->retry_on[foreach_current_index(cell)] = code;
	}
}

/* A path member, NULL when absent. */
static JsonPath *
member_path(Jsonb *object, const char *key)
{
	char	   *text = member_text(object, key);

	if (text == NULL)
		return NULL;
	return DatumGetJsonPathP(DirectFunctionCall1(jsonpath_in, CStringGetDatum(text)));
}

/* coord.step_signal() */
static void
parse_signal(StepDef *step, Jsonb *object)
{
	Interval   *timeout;
	char	   *text;

	check_members(object, signal_members, "a step that waits for a signal");
	step->kind = STEP_SIGNAL;
	step->signal = member_text(object, "signal");
	check_name("signal name", step->signal);
	timeout = member_interval(object, "timeout", false);
	if (timeout != NULL)
		step->wait_us = clock_interval_us(timeout);
	text = member_text(object, "on_timeout");
	if (text != NULL && strcmp(text, "continue") == 0)
		step->continue_on_timeout = true;
	else if (text != NULL && strcmp(text, "fail") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown value \"%s\" of \"on_timeout\"", text),
				 errhint("It is fail or continue.")));
	if (step->continue_on_timeout && timeout == NULL)
		STEP_ERROR(ERRCODE_INVALID_PARAMETER_VALUE,
				   "\"on_timeout\" has no effect without \"timeout\"");
}

/* coord.step_sleep() */
static void
parse_sleep(StepDef *step, Jsonb *object)
{
	check_members(object, sleep_members, "a step that sleeps");
	step->kind = STEP_SLEEP;
	step->wait_us = clock_interval_us(member_interval(object, "duration", false));
}

/* coord.step_saga() */
static void
parse_saga_step(StepDef *step, Jsonb *object)
{
	check_members(object, saga_step_members, "a step that is a saga");
	step->kind = STEP_SAGA;
	step->saga = member_text(object, "saga");
	check_name("saga name", step->saga);
	step->input = member_path(object, "input");
	if (step->input == NULL)
		step->input = DatumGetJsonPathP(DirectFunctionCall1(jsonpath_in,
															CStringGetDatum("$.input")));
}

/* coord.step(): a function, or a label for a queue's workers. */
static void
parse_call(StepDef *step, Jsonb *object, bool resolve)
{
	Interval   *interval;
	double		failed;
	char	   *text;

	check_members(object, call_members, "a step");
	step->queue = member_text(object, "queue");
	step->action = member_text(object, "action");
	step->compensation = member_text(object, "compensation");
	step->server = member_text(object, "server");
	if (step->queue != NULL && step->server != NULL)
		STEP_ERROR(ERRCODE_INVALID_PARAMETER_VALUE,
				   "a step has a queue or a server, not both");
	if (step->queue != NULL)
	{
		step->kind = STEP_QUEUE;
		check_name("queue name", step->queue);
		if (step->action == NULL)
			step->action = step->name;
		check_name("action", step->action);
		if (step->compensation != NULL)
			check_name("compensation", step->compensation);
	}
	else
	{
		if (step->action == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("step \"%s\" has no action", step->name),
					 errhint("Name a function f(jsonb) that returns jsonb or void, or a queue.")));
		if (resolve && step->server != NULL)
		{
			twophase_check_server(step->server);
			step->action = remote_function(step->action);
			if (step->compensation != NULL)
				step->compensation = remote_function(step->compensation);
		}
		else if (resolve)
		{
			step->action = resolve_function(step, "action", step->action);
			if (step->compensation != NULL)
				step->compensation = resolve_function(step, "compensation", step->compensation);
		}
	}

	step->pivot = member_bool(object, "pivot");
	step->optional = member_bool(object, "optional");
	if (step->pivot && step->optional)
		STEP_ERROR(ERRCODE_INVALID_PARAMETER_VALUE,
				   "a pivot cannot be optional");
	if (step->pivot && step->compensation)
		STEP_ERROR(ERRCODE_INVALID_PARAMETER_VALUE,
				   "a pivot cannot have a compensation: once it is completed the saga only goes forward");

	text = member_text(object, "trigger_rule");
	step->rule = RULE_NONE_FAILED;
	if (text != NULL)
	{
		int			rule;

		for (rule = 0; rule_names[rule] != NULL; rule++)
		{
			if (strcmp(rule_names[rule], text) == 0)
				break;
		}
		if (rule_names[rule] == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("unknown trigger rule \"%s\"", text),
					 errhint("Trigger rules are none_failed, all_success, all_done, one_success, one_failed and always.")));
		step->rule = rule;
	}

	interval = member_interval(object, "timeout", false);
	if (interval != NULL)
	{
		int64		ms = (clock_interval_us(interval) + 999) / 1000;

		step->timeout_ms = (int) Min(ms, PG_INT32_MAX);
	}
	step->for_each = member_path(object, "for_each");
	step->max_parallel = member_count(object, "max_parallel");
	failed = member_number(object, "max_failed_items", 0);
	if (!(failed >= 0 && failed <= PG_INT32_MAX) || failed != (int) failed)
		STEP_ERROR(ERRCODE_INVALID_PARAMETER_VALUE,
				   "\"max_failed_items\" must be a number of items");
	step->max_failed_items = (int) failed;
	if (step->for_each == NULL && (step->max_parallel != 0 || failed != 0))
		STEP_ERROR(ERRCODE_INVALID_PARAMETER_VALUE,
				   "\"max_parallel\" and \"max_failed_items\" have no effect without \"for_each\"");
}

/* One element of "steps", all but its place in the graph. */
static void
parse_step(StepDef *step, Jsonb *object, bool resolve, bool participant)
{
	ErrorContextCallback callback;

	step->name = member_text(object, "name");
	if (step->name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("a step must have a name")));
	check_name("step name", step->name);
	step->vote = participant && strcmp(step->name, "prepare") == 0;
	step->must = participant && strcmp(step->name, "commit") == 0;
	callback.callback = step_context;
	callback.arg = step;
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	if (member_text(object, "signal") != NULL)
		parse_signal(step, object);
	else if (member_text(object, "duration") != NULL)
		parse_sleep(step, object);
	else if (member_text(object, "saga") != NULL)
		parse_saga_step(step, object);
	else
		parse_call(step, object, resolve);
	parse_retry(step, object);
	step->condition = member_path(object, "condition");
	error_context_stack = callback.previous;
}

/*
 * Can it be undone once it is completed?  A saga as a step compensates as a
 * unit, by what its own steps say.
 */
bool
saga_step_can_be_undone(const StepDef *step)
{
	return step->compensation != NULL || (step->kind == STEP_SAGA && !step->past_pivot);
}

/* Ordinal of a step by name, -1 when there is none. */
int
saga_step_ordinal(const SagaDef *def, const char *name)
{
	for (int i = 0; i < def->nsteps; i++)
	{
		if (strcmp(def->steps[i].name, name) == 0)
			return i;
	}
	return -1;
}

/* Step names to ordinals, for definitions of many steps. */
typedef struct NameEntry
{
	char		name[SAGA_NAME_MAX + 1];
	int			ordinal;
} NameEntry;

static HTAB *
index_names(SagaDef *def)
{
	HASHCTL		ctl = {0};
	HTAB	   *names;

	ctl.keysize = SAGA_NAME_MAX + 1;
	ctl.entrysize = sizeof(NameEntry);
	ctl.hcxt = CurrentMemoryContext;
	names = hash_create("saga steps", def->nsteps, &ctl,
						HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
	for (int i = 0; i < def->nsteps; i++)
	{
		bool		found;
		NameEntry  *entry = hash_search(names, def->steps[i].name, HASH_ENTER, &found);

		if (found)
			ereport(ERROR,
					(errcode(ERRCODE_DUPLICATE_OBJECT),
					 errmsg("there are two steps \"%s\"", def->steps[i].name)));
		entry->ordinal = i;
	}
	return names;
}

/* Fill in "after" from the names given, or the step before. */
static void
link_steps(SagaDef *def, Jsonb **objects)
{
	HTAB	   *names = index_names(def);

	for (int i = 0; i < def->nsteps; i++)
	{
		StepDef    *step = &def->steps[i];
		bool		present;
		List	   *after = member_strings(objects[i], "after", &present);
		ListCell   *cell;

		step->after = palloc(sizeof(int) * (list_length(after) + 1));
		if (!present && i > 0)
			step->after[step->nafter++] = i - 1;
		foreach(cell, after)
		{
			char	   *name = lfirst(cell);
			NameEntry  *entry = NULL;

			if (strlen(name) <= SAGA_NAME_MAX)
				entry = hash_search(names, name, HASH_FIND, NULL);
			if (entry == NULL)
				ereport(ERROR,
						(errcode(ERRCODE_UNDEFINED_OBJECT),
						 errmsg("step \"%s\" comes after step \"%s\", which does not exist",
								step->name, name)));
			for (int j = 0; j < step->nafter; j++)
			{
				if (step->after[j] == entry->ordinal)
					STEP_ERROR(ERRCODE_DUPLICATE_OBJECT,
							   "\"after\" of step \"%s\" names step \"%s\" twice", step->name, name);
			}
			step->after[step->nafter++] = entry->ordinal;
		}
		if (step->rule != RULE_NONE_FAILED && step->nafter == 0)
			STEP_ERROR(ERRCODE_INVALID_PARAMETER_VALUE,
					   "\"trigger_rule\" has no effect on step \"%s\", which comes after none", step->name);
		for (int j = 0; j < step->nafter; j++)
			def->steps[step->after[j]].nbefore++;
	}
	for (int i = 0; i < def->nsteps; i++)
	{
		def->steps[i].before = palloc(sizeof(int) * (def->steps[i].nbefore + 1));
		def->steps[i].nbefore = 0;
	}
	for (int i = 0; i < def->nsteps; i++)
	{
		for (int j = 0; j < def->steps[i].nafter; j++)
		{
			StepDef    *other = &def->steps[def->steps[i].after[j]];

			other->before[other->nbefore++] = i;
		}
	}
	hash_destroy(names);
}

/*
 * Refuse cycles (Kahn 1962), and on the way carry "past_pivot" along the edges.
 */
static void
check_graph(SagaDef *def)
{
	int		   *waiting = palloc(sizeof(int) * def->nsteps);
	int		   *order = palloc(sizeof(int) * def->nsteps);
	int			head = 0;
	int			tail = 0;

	for (int i = 0; i < def->nsteps; i++)
	{
		waiting[i] = def->steps[i].nafter;
		if (waiting[i] == 0)
			order[tail++] = i;
	}
	while (head < tail)
	{
		StepDef    *step = &def->steps[order[head++]];

		for (int j = 0; j < step->nbefore; j++)
		{
			int			next = step->before[j];

			if (step->pivot || step->past_pivot)
				def->steps[next].past_pivot = true;
			if (--waiting[next] == 0)
				order[tail++] = next;
		}
	}
	if (tail < def->nsteps)
	{
		StringInfoData names;
		int			at = 0;
		int			start;

		/* From any step that is left, going back often enough ends in a cycle. */
		while (waiting[at] == 0)
			at++;
		for (int i = 0; i < def->nsteps; i++)
		{
			for (int j = 0; j < def->steps[at].nafter; j++)
			{
				if (waiting[def->steps[at].after[j]] > 0)
				{
					at = def->steps[at].after[j];
					break;
				}
			}
		}
		start = at;
		initStringInfo(&names);
		do
		{
			appendStringInfo(&names, "\"%s\" after ", def->steps[at].name);
			for (int j = 0; j < def->steps[at].nafter; j++)
			{
				if (waiting[def->steps[at].after[j]] > 0)
				{
					at = def->steps[at].after[j];
					break;
				}
			}
		} while (at != start && names.len < 1000);
		appendStringInfo(&names, "\"%s\"", def->steps[at].name);
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the steps form a cycle"),
				 errdetail("%s.", names.data)));
	}

	def->pivot = -1;
	for (int i = 0; i < def->nsteps; i++)
	{
		StepDef    *step = &def->steps[i];

		if (step->pivot && def->pivot >= 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("there are two pivots, \"%s\" and \"%s\"",
							def->steps[def->pivot].name, step->name),
					 errhint("After the first pivot the saga only goes forward; a second would change nothing.")));
		if (step->pivot)
			def->pivot = i;
		if (step->past_pivot && step->compensation)
			STEP_ERROR(ERRCODE_INVALID_PARAMETER_VALUE,
					   "step \"%s\" after the pivot cannot have a compensation: it would never run", step->name);
	}
	pfree(waiting);
	pfree(order);
}

/* Where each step's result goes in the context document. */
static void
rank_steps(SagaDef *def)
{
	struct
	{
		JsonPart	part;		/* first, for json_compare_parts() */
		int			ordinal;
	}		   *sorted = palloc0(sizeof(*sorted) * def->nsteps);

	def->parts = palloc(sizeof(JsonPart) * def->nsteps);
	for (int i = 0; i < def->nsteps; i++)
	{
		json_part_key(&sorted[i].part, def->steps[i].name);
		sorted[i].ordinal = i;
	}
	qsort(sorted, def->nsteps, sizeof(*sorted), json_compare_parts);
	for (int i = 0; i < def->nsteps; i++)
	{
		def->parts[i] = sorted[i].part;
		def->steps[sorted[i].ordinal].rank = i;
	}
	pfree(sorted);
}

/*
 * Read a definition; everything is allocated in the current memory context.
 * With "resolve" functions are looked up and checked for the current user, and
 * the names in the result are schema-qualified.  Any mistake is an error.
 */
SagaDef *
saga_definition_parse(Jsonb *document, bool resolve)
{
	SagaDef    *def = palloc0(sizeof(SagaDef));
	JsonbValue	steps;
	JsonbValue	value;
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	Jsonb	  **objects;
	char	   *text;

	if (!json_is_object(document))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a saga definition must be a JSON object")));
	def->participant = json_get(document, "participant", &value) != NULL;
	check_members(document, def->participant ? participant_members : saga_members, "a saga");
	if (json_get(document, "steps", &steps) == NULL || steps.type != jbvBinary ||
		!JsonContainerIsArray(steps.val.binary.data))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a saga definition must have an array \"steps\"")));
	if (JsonContainerSize(steps.val.binary.data) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a saga must have at least one step")));

	def->steps = palloc0(sizeof(StepDef) * JsonContainerSize(steps.val.binary.data));
	objects = palloc(sizeof(Jsonb *) * JsonContainerSize(steps.val.binary.data));
	iterator = JsonbIteratorInit(steps.val.binary.data);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		Jsonb	   *object;

		if (token != WJB_ELEM)
			continue;
		object = JsonbValueToJsonb(&value);
		if (value.type != jbvBinary || !json_is_object(object))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("a step must be a JSON object"),
					 errhint("coord.step() makes one.")));
		objects[def->nsteps] = object;
		parse_step(&def->steps[def->nsteps], object, resolve, def->participant);
		if (def->participant && def->steps[def->nsteps].kind == STEP_SIGNAL)
			def->steps[def->nsteps].pivot = true;	/* the decision */
		def->nsteps++;
	}
	link_steps(def, objects);
	check_graph(def);
	rank_steps(def);
	for (int i = 0; i < def->nsteps; i++)
	{
		const StepDef *step = &def->steps[i];

		/* A step that several come after, or none does, may run beside others. */
		def->waits = def->waits || step->kind != STEP_LOCAL || step->for_each != NULL ||
			step->nbefore > 1 || (i > 0 && step->nafter == 0);
		def->signals = def->signals || step->kind == STEP_SIGNAL;
	}

	def->deadline = member_interval(document, "deadline", false);
	text = member_text(document, "on_exhausted");
	if (text != NULL && strcmp(text, "suspend") == 0)
		def->suspend_on_exhausted = true;
	else if (text != NULL && strcmp(text, "compensate") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown value \"%s\" of \"on_exhausted\"", text),
				 errhint("It is compensate or suspend.")));
	if (member_bool(document, "record_events"))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("option \"record_events\" is not supported yet")));
	return def;
}

/*
 * The definition with this id, parsed once per process.  XX000 when there is
 * none.
 */
SagaDef *
saga_definition_by_id(int64 id)
{
	static Statement read = {
		"SELECT name, version, definition, search_path"
		" FROM coord_internal.saga_version WHERE id = $1",
		1, {INT8OID}
	};
	DefinitionEntry *entry;
	MemoryContext context;
	QueryScope	scope;
	SagaDef    *def;
	Jsonb	   *document;
	Datum		value = Int64GetDatum(id);
	char	   *name;
	char	   *search_path;
	int			version;
	bool		isnull;

	if (definitions_namespace != get_namespace_oid("coord_internal", true))
	{
		/* What may still be in use somewhere below is left, not freed. */
		definitions_namespace = get_namespace_oid("coord_internal", true);
		definitions = NULL;
	}
	if (definitions == NULL)
	{
		HASHCTL		ctl = {0};

		ctl.keysize = sizeof(int64);
		ctl.entrysize = sizeof(DefinitionEntry);
		ctl.hcxt = TopMemoryContext;
		definitions = hash_create("coord saga definitions", 64, &ctl,
								  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	entry = hash_search(definitions, &id, HASH_FIND, NULL);
	if (entry != NULL)
		return entry->def;

	context = AllocSetContextCreate(CurrentMemoryContext, "coord saga definition",
									ALLOCSET_SMALL_SIZES);
	query_begin(&scope);
	if (query_run_latest(&read, &value, NULL, 1) == 0)
		elog(ERROR, "saga definition " INT64_FORMAT " does not exist", id);
	name = query_text(context, 0, 1);
	version = DatumGetInt32(query_value(0, 2, &isnull));
	document = DatumGetJsonbP(query_copy(context, 0, 3, &isnull));
	search_path = query_text(context, 0, 4);
	query_end(&scope);

	context = MemoryContextSwitchTo(context);
	def = saga_definition_parse(document, false);
	context = MemoryContextSwitchTo(context);
	def->id = id;
	def->name = name;
	def->version = version;
	def->search_path = search_path;

	/* Only what is complete is kept. */
	MemoryContextSetParent(context, TopMemoryContext);
	entry = hash_search(definitions, &id, HASH_ENTER, NULL);
	entry->def = def;
	return def;
}

/*
 * EXECUTE on every function, checked when a saga starts so that a mistake
 * meets the caller and not the operator.
 */
void
saga_definition_check_execute(const SagaDef *def, Oid role)
{
	for (int i = 0; i < def->nsteps; i++)
	{
		const char *functions[2];

		functions[0] = def->steps[i].action;
		functions[1] = def->steps[i].compensation;
		for (int j = 0; j < 2; j++)
		{
			Oid			oid;

			if (functions[j] == NULL || def->steps[i].kind != STEP_LOCAL ||
				def->steps[i].server != NULL)
				continue;
			oid = saga_function_usable(functions[j], role);
			if (!OidIsValid(oid))
				ereport(ERROR,
						(errcode(ERRCODE_UNDEFINED_FUNCTION),
						 errmsg("function %s(jsonb) does not exist", functions[j]),
						 errdetail("Step \"%s\" of saga \"%s\" version %d uses it.",
								   def->steps[i].name, def->name, def->version)));
			check_function(oid, functions[j], j == 0 ? "action" : "compensation",
						   &def->steps[i]);
			if (coord_function_aclcheck(oid, role) != ACLCHECK_OK)
				ereport(ERROR,
						(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						 errmsg("permission denied for function %s", functions[j]),
						 errdetail("Step \"%s\" of saga \"%s\" version %d uses it.",
								   def->steps[i].name, def->name, def->version)));
		}
	}
}
