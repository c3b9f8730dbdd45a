/*-------------------------------------------------------------------------
 *
 * saga_define.c
 *	  Defining sagas: coord.step(), saga_define(), saga_activate(), saga_drop().
 *
 * A name belongs to the role that defined it first.  Defining locks the name's
 * row, so that forty pods that deploy the same content at once get the same
 * version, made once.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/float.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/numeric.h"
#include "utils/timestamp.h"
#include "utils/varlena.h"

#include "base/access.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/identity.h"
#include "base/installation.h"
#include "base/json.h"
#include "base/query.h"
#include "saga/saga.h"
#include "saga/saga_task.h"

PG_FUNCTION_INFO_V1(coord_step);
PG_FUNCTION_INFO_V1(coord_step_signal);
PG_FUNCTION_INFO_V1(coord_step_sleep);
PG_FUNCTION_INFO_V1(coord_step_saga);
PG_FUNCTION_INFO_V1(coord_saga_define);
PG_FUNCTION_INFO_V1(coord_saga_define_json);
PG_FUNCTION_INFO_V1(coord_saga_activate);
PG_FUNCTION_INFO_V1(coord_saga_drop);
PG_FUNCTION_INFO_V1(coord_internal_check_saga_name);

/*
 * What a name stands for: filled from the tables, emptied when
 * coord_internal.saga_name changes anywhere.
 */
typedef struct ActiveEntry
{
	char		name[SAGA_NAME_MAX + 1];
	int64		definition;
	Oid			owner;
} ActiveEntry;

static HTAB *active = NULL;
static bool active_valid = false;
static Oid	saga_name_relid = InvalidOid;

/* ----------------------------------------------------------------
 *		coord.step()
 * ----------------------------------------------------------------
 */

typedef enum ArgKind
{
	ARG_TEXT, ARG_NAME, ARG_TEXT_ARRAY, ARG_BOOL, ARG_JSONPATH, ARG_INT,
	ARG_INTERVAL, ARG_FLOAT
} ArgKind;

/* An argument of a function that describes a step. */
typedef struct StepArg
{
	const char *name;
	ArgKind		kind;
	const char *default_value;	/* left out of the description */
	bool		required;
} StepArg;

static const StepArg step_args[] = {
	{"name", ARG_TEXT, NULL, true},
	{"action", ARG_TEXT, NULL},
	{"compensation", ARG_TEXT, NULL},
	{"after", ARG_TEXT_ARRAY, NULL},
	{"queue", ARG_TEXT, NULL},
	{"server", ARG_NAME, NULL},
	{"pivot", ARG_BOOL, "f"},
	{"optional", ARG_BOOL, "f"},
	{"condition", ARG_JSONPATH, NULL},
	{"trigger_rule", ARG_TEXT, "none_failed"},
	{"for_each", ARG_JSONPATH, NULL},
	{"max_parallel", ARG_INT, NULL},
	{"max_failed_items", ARG_INT, "0"},
	{"timeout", ARG_INTERVAL, NULL},
	{"max_attempts", ARG_INT, NULL},
	{"retry_delay", ARG_INTERVAL, "00:00:01"},
	{"retry_backoff", ARG_FLOAT, "2"},
	{"retry_max_delay", ARG_INTERVAL, "00:05:00"},
	{"retry_on", ARG_TEXT_ARRAY, NULL},
};

static const StepArg step_signal_args[] = {
	{"name", ARG_TEXT, NULL, true},
	{"signal", ARG_TEXT, NULL, true},
	{"timeout", ARG_INTERVAL, NULL},
	{"on_timeout", ARG_TEXT, "fail"},
	{"after", ARG_TEXT_ARRAY, NULL},
	{"condition", ARG_JSONPATH, NULL},
};

static const StepArg step_sleep_args[] = {
	{"name", ARG_TEXT, NULL, true},
	{"duration", ARG_INTERVAL, NULL, true},
	{"after", ARG_TEXT_ARRAY, NULL},
	{"condition", ARG_JSONPATH, NULL},
};

static const StepArg step_saga_args[] = {
	{"name", ARG_TEXT, NULL, true},
	{"saga", ARG_TEXT, NULL, true},
	{"input", ARG_JSONPATH, "$.\"input\""},
	{"after", ARG_TEXT_ARRAY, NULL},
	{"condition", ARG_JSONPATH, NULL},
};

/* An interval as text that every session reads the same. */
static char *
interval_text(Datum interval)
{
	int			style = IntervalStyle;
	char	   *result;

	IntervalStyle = INTSTYLE_POSTGRES;
	result = DatumGetCString(DirectFunctionCall1(interval_out, interval));
	IntervalStyle = style;
	return result;
}

static char *
arg_text(ArgKind kind, Datum value)
{
	switch (kind)
	{
		case ARG_TEXT:
			return TextDatumGetCString(value);
		case ARG_NAME:
			return pstrdup(NameStr(*DatumGetName(value)));
		case ARG_BOOL:
			return DatumGetBool(value) ? "t" : "f";
		case ARG_JSONPATH:
			return DatumGetCString(DirectFunctionCall1(jsonpath_out, value));
		case ARG_INT:
			return psprintf("%d", DatumGetInt32(value));
		case ARG_INTERVAL:
			return interval_text(value);
		case ARG_FLOAT:
			return float8out_internal(DatumGetFloat8(value));
		case ARG_TEXT_ARRAY:
			break;
	}
	return NULL;
}

static void
write_text_array(JsonWriter *writer, Datum array, const char *name)
{
	Datum	   *elements;
	bool	   *nulls;
	int			count;

	deconstruct_array(DatumGetArrayTypeP(array), TEXTOID, -1, false,
					  TYPALIGN_INT, &elements, &nulls, &count);
	json_begin_array(writer);
	for (int i = 0; i < count; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("%s must not contain null", name)));
		json_string_element(writer, TextDatumGetCString(elements[i]));
	}
	json_end_array(writer);
}

/*
 * A step as a JSON object.  Only says what was said; the checks are
 * saga_define()'s.
 */
static Datum
describe_step(FunctionCallInfo fcinfo, const StepArg *args, int nargs)
{
	JsonWriter	writer = {0};

	json_begin_object(&writer);
	for (int i = 0; i < nargs; i++)
	{
		char	   *text;

		if (args[i].required)
			check_required(fcinfo, i, args[i].name);
		if (PG_ARGISNULL(i))
			continue;
		if (args[i].kind == ARG_TEXT_ARRAY)
		{
			json_key(&writer, args[i].name);
			write_text_array(&writer, PG_GETARG_DATUM(i), args[i].name);
			continue;
		}
		text = arg_text(args[i].kind, PG_GETARG_DATUM(i));
		if (args[i].default_value && strcmp(text, args[i].default_value) == 0)
			continue;
		json_key(&writer, args[i].name);
		switch (args[i].kind)
		{
			case ARG_BOOL:
				json_bool(&writer, true);
				break;
			case ARG_INT:
				json_integer(&writer, PG_GETARG_INT32(i));
				break;
			case ARG_FLOAT:
				{
					Datum		number = DirectFunctionCall1(float8_numeric, PG_GETARG_DATUM(i));

					json_numeric(&writer, DatumGetNumeric(number));
				}
				break;
			default:
				json_string(&writer, text);
		}
	}
	json_end_object(&writer);
	PG_RETURN_JSONB_P(json_finish(&writer));
}

/* coord.step(...) */
Datum
coord_step(PG_FUNCTION_ARGS)
{
	return describe_step(fcinfo, step_args, lengthof(step_args));
}

/* coord.step_signal(name, signal, timeout, on_timeout, after, condition) */
Datum
coord_step_signal(PG_FUNCTION_ARGS)
{
	return describe_step(fcinfo, step_signal_args, lengthof(step_signal_args));
}

/* coord.step_sleep(name, duration, after, condition) */
Datum
coord_step_sleep(PG_FUNCTION_ARGS)
{
	return describe_step(fcinfo, step_sleep_args, lengthof(step_sleep_args));
}

/* coord.step_saga(name, saga, input, after, condition) */
Datum
coord_step_saga(PG_FUNCTION_ARGS)
{
	return describe_step(fcinfo, step_saga_args, lengthof(step_saga_args));
}

/* ----------------------------------------------------------------
 *		Names
 * ----------------------------------------------------------------
 */

/* The role that a saga name belongs to, InvalidOid when there is none. */
Oid
saga_name_owner(const char *name)
{
	static Statement read = {
		"SELECT owner FROM coord_internal.saga_name WHERE name = $1", 1, {TEXTOID}
	};
	QueryScope	scope;
	Datum		value;
	Oid			owner = InvalidOid;
	bool		isnull;

	query_begin(&scope);
	value = CStringGetTextDatum(name);
	if (query_run_latest(&read, &value, NULL, 1) > 0)
		owner = DatumGetObjectId(query_value(0, 1, &isnull));
	query_end(&scope);
	return owner;
}

/*
 * 42704 for a saga name that does not exist or that the caller may not use,
 * with the near ones that he may.
 */
void
saga_name_unknown(const char *name)
{
	static Statement read = {
		"SELECT name, owner FROM coord_internal.saga_name ORDER BY name LIMIT 1000",
		0, {0}
	};
	List	   *candidates = NIL;
	MemoryContext context = CurrentMemoryContext;
	QueryScope	scope;
	uint64		rows;
	char	  **names;
	Oid		   *owners;
	char	   *hint;

	query_begin(&scope);
	rows = query_run(&read, NULL, NULL, 0);
	names = MemoryContextAlloc(context, sizeof(char *) * (rows + 1));
	owners = MemoryContextAlloc(context, sizeof(Oid) * (rows + 1));
	for (uint64 i = 0; i < rows; i++)
	{
		bool		isnull;

		names[i] = query_text(context, i, 1);
		owners[i] = DatumGetObjectId(query_value(i, 2, &isnull));
	}
	query_end(&scope);
	for (uint64 i = 0; i < rows; i++)
	{
		if (!saga_name_is_reserved(names[i]) && access_may_act(owners[i], "saga", names[i]))
			candidates = lappend(candidates, names[i]);
	}

	hint = check_near_names(name, candidates);
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("saga \"%s\" does not exist", name),
			 hint ? errhint("%s", hint) : 0));
}

static void
relcache_callback(Datum arg, Oid relid)
{
	if (!OidIsValid(relid) || relid == saga_name_relid)
		active_valid = false;
}

/* Every process forgets what names stand for once this commits. */
static void
names_changed(void)
{
	CacheInvalidateRelcacheByRelid(get_relname_relid("saga_name",
													 get_namespace_oid("coord_internal", false)));
	active_valid = false;
}

/* The entry of a name, read from the table if need be; NULL: no such name. */
static ActiveEntry *
find_active(const char *name)
{
	static Statement read = {
		"SELECT v.id, n.owner FROM coord_internal.saga_name n"
		" JOIN coord_internal.saga_version v"
		" ON v.name = n.name AND v.version = n.active_version"
		" WHERE n.name = $1",
		1, {TEXTOID}
	};
	ActiveEntry *entry;
	QueryScope	scope;
	Datum		value;
	int64		definition = 0;
	Oid			owner = InvalidOid;

	if (active == NULL)
	{
		HASHCTL		ctl = {0};

		ctl.keysize = SAGA_NAME_MAX + 1;
		ctl.entrysize = sizeof(ActiveEntry);
		ctl.hcxt = TopMemoryContext;
		active = hash_create("coord saga names", 64, &ctl,
							 HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
		CacheRegisterRelcacheCallback(relcache_callback, (Datum) 0);
	}
	if (!active_valid)
	{
		HASH_SEQ_STATUS status;

		hash_seq_init(&status, active);
		while ((entry = hash_seq_search(&status)) != NULL)
			hash_search(active, entry->name, HASH_REMOVE, NULL);
		saga_name_relid = get_relname_relid("saga_name",
											get_namespace_oid("coord_internal", false));
		active_valid = true;
	}
	entry = hash_search(active, name, HASH_FIND, NULL);
	if (entry != NULL)
		return entry;

	query_begin(&scope);
	value = CStringGetTextDatum(name);
	if (query_run_latest(&read, &value, NULL, 1) > 0)
	{
		bool		isnull;

		definition = DatumGetInt64(query_value(0, 1, &isnull));
		owner = DatumGetObjectId(query_value(0, 2, &isnull));
	}
	query_end(&scope);
	if (definition == 0)
		return NULL;

	entry = hash_search(active, name, HASH_ENTER, NULL);
	entry->definition = definition;
	entry->owner = owner;
	return entry;
}

/*
 * The id of a definition that the current user may use: the active version, or
 * the given one (0: active).  42704 when there is none.
 */
int64
saga_definition_lookup(const char *name, int version)
{
	static Statement read = {
		"SELECT id FROM coord_internal.saga_version WHERE name = $1 AND version = $2",
		2, {TEXTOID, INT4OID}
	};
	ActiveEntry *entry = NULL;
	int64		definition;

	if (strlen(name) <= SAGA_NAME_MAX)
		entry = find_active(name);
	if (entry == NULL || !access_may_act(entry->owner, "saga", name))
		saga_name_unknown(name);
	definition = entry->definition;
	if (version != 0)
	{
		QueryScope	scope;
		Datum		values[2];
		bool		isnull;

		query_begin(&scope);
		values[0] = CStringGetTextDatum(name);
		values[1] = Int32GetDatum(version);
		if (query_run_latest(&read, values, NULL, 1) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("saga \"%s\" has no version %d", name, version)));
		definition = DatumGetInt64(query_value(0, 1, &isnull));
		query_end(&scope);
	}
	return definition;
}

/* ----------------------------------------------------------------
 *		Defining
 * ----------------------------------------------------------------
 */

/* The document as it is stored: names qualified, "after" spelled out. */
static Jsonb *
canonical_document(const SagaDef *def, Jsonb *document)
{
	JsonWriter	writer = {0};
	JsonbValue	steps;
	JsonbValue	value;
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	int			ordinal = 0;

	json_begin_object(&writer);
	json_key(&writer, "steps");
	json_begin_array(&writer);
	(void) json_get(document, "steps", &steps);
	iterator = JsonbIteratorInit(steps.val.binary.data);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		const StepDef *step;
		JsonbIterator *members;
		JsonbValue	member;

		if (token != WJB_ELEM)
			continue;
		step = &def->steps[ordinal++];
		json_begin_object(&writer);
		members = JsonbIteratorInit(value.val.binary.data);
		while ((token = JsonbIteratorNext(&members, &member, true)) != WJB_DONE)
		{
			char	   *key;

			if (token != WJB_KEY)
				continue;
			key = pnstrdup(member.val.string.val, member.val.string.len);
			(void) JsonbIteratorNext(&members, &member, true);
			if (member.type == jbvNull || strcmp(key, "action") == 0 ||
				strcmp(key, "compensation") == 0 || strcmp(key, "after") == 0)
				continue;
			json_key(&writer, key);
			json_member(&writer, &member);
		}
		if (step->action)
		{
			json_key(&writer, "action");
			json_string(&writer, step->action);
		}
		if (step->compensation)
		{
			json_key(&writer, "compensation");
			json_string(&writer, step->compensation);
		}
		json_key(&writer, "after");
		json_begin_array(&writer);
		for (int i = 0; i < step->nafter; i++)
			json_string_element(&writer, def->steps[step->after[i]].name);
		json_end_array(&writer);
		json_end_object(&writer);
	}
	json_end_array(&writer);
	if (def->participant)
	{
		json_key(&writer, "participant");
		json_bool(&writer, true);
		json_end_object(&writer);
		return json_finish(&writer);
	}
	if (def->deadline)
	{
		json_key(&writer, "deadline");
		json_string(&writer, interval_text(IntervalPGetDatum(def->deadline)));
	}
	json_key(&writer, "on_exhausted");
	json_string(&writer, def->suspend_on_exhausted ? "suspend" : "compensate");
	json_end_object(&writer);
	return json_finish(&writer);
}

/*
 * The search_path in force with pg_temp last: whatever is in a temporary schema
 * must never come before what the definer meant.
 */
static char *
stored_search_path(void)
{
	StringInfoData path;
	char	   *raw = pstrdup(namespace_search_path);
	List	   *elements;
	ListCell   *cell;

	initStringInfo(&path);
	if (SplitIdentifierString(raw, ',', &elements))
	{
		foreach(cell, elements)
		{
			if (strcmp(lfirst(cell), "pg_temp") != 0)
				appendStringInfo(&path, "%s, ", quote_identifier(lfirst(cell)));
		}
	}
	appendStringInfoString(&path, "pg_temp");
	return path.data;
}

/*
 * Names of what coord makes for participants of applications' two-phase commits, for
 * nobody else to define, start or drop.
 */
#define RESERVED "twophase/"

bool
saga_name_is_reserved(const char *name)
{
	return strncmp(name, RESERVED, strlen(RESERVED)) == 0;
}

void
saga_check_not_reserved(const char *name)
{
	if (saga_name_is_reserved(name))
		ereport(ERROR,
				(errcode(ERRCODE_RESERVED_NAME),
				 errmsg("saga name \"%s\" is reserved", name),
				 errdetail("Names that begin with \"%s\" are those of participants of two-phase commits.",
						   RESERVED)));
}

/*
 * Define "name" as "document"; returns the version.  The same content again
 * returns the version that has it and changes nothing.
 */
static int
define(const char *name, Jsonb *document, int64 *definition)
{
	static Statement claim = {
		"INSERT INTO coord_internal.saga_name (name, owner, active_version, created_at)"
		" VALUES ($1, $2, 0, $3) ON CONFLICT (name) DO NOTHING",
		3, {TEXTOID, OIDOID, TIMESTAMPTZOID}
	};
	static Statement lock = {
		"SELECT owner, active_version FROM coord_internal.saga_name"
		" WHERE name = $1 FOR UPDATE",
		1, {TEXTOID}
	};
	static Statement same = {
		"SELECT version, id FROM coord_internal.saga_version"
		" WHERE name = $1 AND definition = $2 AND search_path = $3"
		" ORDER BY version DESC LIMIT 1",
		3, {TEXTOID, JSONBOID, TEXTOID}
	};
	static Statement insert = {
		"INSERT INTO coord_internal.saga_version"
		" (name, version, definition, search_path, definer, created_at)"
		" SELECT $1, coalesce(max(version), 0) + 1, $2, $3, $4, $5"
		" FROM coord_internal.saga_version WHERE name = $1"
		" RETURNING version, id",
		5, {TEXTOID, JSONBOID, TEXTOID, OIDOID, TIMESTAMPTZOID}
	};
	static Statement activate = {
		"UPDATE coord_internal.saga_name SET active_version = $2 WHERE name = $1",
		2, {TEXTOID, INT4OID}
	};
	Oid			user = GetUserId();
	SagaDef    *def;
	QueryScope	scope;
	Datum		values[5];
	char	   *search_path;
	bool		isnull;
	Oid			owner;
	int			version;
	int			active_version;

	installation_check();
	installation_check_not_foreign();
	check_name("saga name", name);
	def = saga_definition_parse(document, true);
	document = canonical_document(def, document);
	search_path = stored_search_path();

	query_begin(&scope);
	values[0] = CStringGetTextDatum(name);
	values[1] = ObjectIdGetDatum(user);
	values[2] = TimestampTzGetDatum(clock_now());
	query_run(&claim, values, NULL, 0);
	if (query_run(&lock, values, NULL, 0) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("saga \"%s\" was changed by a concurrent transaction", name)));
	owner = DatumGetObjectId(query_value(0, 1, &isnull));
	active_version = DatumGetInt32(query_value(0, 2, &isnull));
	if (!is_member_of_role(user, owner) && !access_sees_all(user))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("saga name \"%s\" belongs to another role", name),
				 errhint("Choose another name, or let a member of its owner or of coord_admin define it.")));

	if (!is_member_of_role_nosuper(user, owner))
		ereport(WARNING,
				(errmsg("saga name \"%s\" belongs to role \"%s\"", name,
						GetUserNameFromId(owner, true)),
				 errdetail("That role and its members can define further versions, which run as whoever starts them.")));

	values[1] = JsonbPGetDatum(document);
	values[2] = CStringGetTextDatum(search_path);
	if (query_run(&same, values, NULL, 1) > 0)
	{
		version = DatumGetInt32(query_value(0, 1, &isnull));
		*definition = query_int8(0, 2);
		query_end(&scope);
		if (version != active_version && !def->participant)
			ereport(NOTICE,
					(errmsg("this is version %d of saga \"%s\", and version %d is active",
							version, name, active_version),
					 errhint("SELECT coord.saga_activate(%s, %d);",
							 quote_literal_cstr(name), version)));
		return version;
	}
	values[3] = ObjectIdGetDatum(user);
	values[4] = TimestampTzGetDatum(clock_now());
	query_run(&insert, values, NULL, 0);
	version = DatumGetInt32(query_value(0, 1, &isnull));
	*definition = query_int8(0, 2);
	values[1] = Int32GetDatum(version);
	query_run(&activate, values, NULL, 0);
	query_end(&scope);
	for (int i = 0; i < def->nsteps; i++)
	{
		if (def->steps[i].kind == STEP_QUEUE)
			queue_use(def->steps[i].queue, user);
	}
	access_note_role(user);
	names_changed();
	return version;
}

/* The same for users. */
static int
define_for_user(const char *name, Jsonb *document)
{
	JsonbValue	value;
	int64		definition;

	saga_check_not_reserved(name);
	if (json_is_object(document) && json_get(document, "participant", &value) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown option \"%s\" of %s", "participant", "a saga")));
	return define(name, document, &definition);
}

/*
 * The definition of a participant; its id.  Looked for without a lock first, or those
 * who enlist the same would wait for each other.
 */
int64
saga_define_participant(const char *name, Jsonb *document)
{
	static Statement same = {
		"SELECT id FROM coord_internal.saga_version"
		" WHERE name = $1 AND definition = $2 AND search_path = $3",
		3, {TEXTOID, JSONBOID, TEXTOID}
	};
	SagaDef    *def = saga_definition_parse(document, true);
	QueryScope	scope;
	Datum		values[3];
	int64		definition = 0;

	values[0] = CStringGetTextDatum(name);
	values[1] = JsonbPGetDatum(canonical_document(def, document));
	values[2] = CStringGetTextDatum(stored_search_path());
	query_begin(&scope);
	if (query_run_latest(&same, values, NULL, 1) > 0)
		definition = query_int8(0, 1);
	query_end(&scope);
	if (definition == 0)
		(void) define(name, document, &definition);
	return definition;
}

/* coord.saga_define(name, steps, deadline, on_exhausted, record_events) */
Datum
coord_saga_define(PG_FUNCTION_ARGS)
{
	char	   *name = check_text(fcinfo, 0, "name");
	JsonWriter	writer = {0};
	Datum	   *elements;
	bool	   *nulls;
	int			count;

	check_required(fcinfo, 1, "steps");
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), JSONBOID, -1, false,
					  TYPALIGN_INT, &elements, &nulls, &count);
	json_begin_object(&writer);
	json_key(&writer, "steps");
	json_begin_array(&writer);
	for (int i = 0; i < count; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("steps must not contain null")));
		json_element(&writer, DatumGetJsonbP(elements[i]));
	}
	json_end_array(&writer);
	if (!PG_ARGISNULL(2))
	{
		json_key(&writer, "deadline");
		json_string(&writer, interval_text(PG_GETARG_DATUM(2)));
	}
	if (!PG_ARGISNULL(3))
	{
		json_key(&writer, "on_exhausted");
		json_string(&writer, text_to_cstring(PG_GETARG_TEXT_PP(3)));
	}
	if (!PG_ARGISNULL(4))
	{
		json_key(&writer, "record_events");
		json_bool(&writer, PG_GETARG_BOOL(4));
	}
	json_end_object(&writer);
	PG_RETURN_INT32(define_for_user(name, json_finish(&writer)));
}

/* coord.saga_define_json(name, definition) */
Datum
coord_saga_define_json(PG_FUNCTION_ARGS)
{
	char	   *name = check_text(fcinfo, 0, "name");

	check_required(fcinfo, 1, "definition");
	PG_RETURN_INT32(define_for_user(name, PG_GETARG_JSONB_P(1)));
}

/*
 * Lock a name until the end of the transaction: starts in AccessShareLock, drop
 * in AccessExclusiveLock.  Not the name's row, which all starts would write
 * their lock into.
 */
void
saga_lock_name(const char *name, LOCKMODE mode)
{
	Oid			relation = get_relname_relid("saga_name",
											 get_namespace_oid("coord_internal", false));
	uint32		hash = DatumGetUInt32(hash_any((const unsigned char *) name, strlen(name)));

	LockDatabaseObject(relation, (Oid) hash, 0, mode);
}

/* Lock a name that the current user may change; its active version. */
static int
lock_own_name(const char *name)
{
	static Statement lock = {
		"SELECT owner, active_version FROM coord_internal.saga_name"
		" WHERE name = $1 FOR UPDATE",
		1, {TEXTOID}
	};
	Oid			user = GetUserId();
	QueryScope	scope;
	Datum		value;
	Oid			owner = InvalidOid;
	int			version = 0;

	query_begin(&scope);
	value = CStringGetTextDatum(name);
	if (query_run(&lock, &value, NULL, 0) > 0)
	{
		bool		isnull;

		owner = DatumGetObjectId(query_value(0, 1, &isnull));
		version = DatumGetInt32(query_value(0, 2, &isnull));
	}
	query_end(&scope);
	if (!OidIsValid(owner) ||
		(!is_member_of_role(user, owner) && !access_sees_all(user)))
		saga_name_unknown(name);
	return version;
}

/* coord.saga_activate(name, version) */
Datum
coord_saga_activate(PG_FUNCTION_ARGS)
{
	static Statement activate = {
		"UPDATE coord_internal.saga_name n SET active_version = v.version"
		" FROM coord_internal.saga_version v"
		" WHERE n.name = $1 AND v.name = $1 AND v.version = $2",
		2, {TEXTOID, INT4OID}
	};
	char	   *name = check_text(fcinfo, 0, "name");
	QueryScope	scope;
	Datum		values[2];
	int			version;

	installation_check();
	saga_check_not_reserved(name);
	check_required(fcinfo, 1, "version");
	version = PG_GETARG_INT32(1);
	if (lock_own_name(name) == version)
		PG_RETURN_VOID();

	query_begin(&scope);
	values[0] = CStringGetTextDatum(name);
	values[1] = Int32GetDatum(version);
	if (query_run(&activate, values, NULL, 0) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("saga \"%s\" has no version %d", name, version)));
	query_end(&scope);
	names_changed();
	PG_RETURN_VOID();
}

/*
 * coord.saga_drop(name): false when there is no such saga.
 *
 * Why no instance can be left without its definition: a start takes a weak lock
 * on the name before it looks the name up, and this takes a strong one before
 * it counts.  A start that came first is waited for and counted; one that comes
 * later looks up after this has committed and finds no name.  Nobody else waits:
 * the lock is the name's alone.
 */
Datum
coord_saga_drop(PG_FUNCTION_ARGS)
{
	static Statement running = {
		"SELECT count(*) FROM coord_internal.saga s"
		" JOIN coord_internal.saga_version v ON v.id = s.definition"
		" WHERE v.name = $1",
		1, {TEXTOID}
	};
	static Statement drop_versions = {
		"DELETE FROM coord_internal.saga_version WHERE name = $1", 1, {TEXTOID}
	};
	static Statement drop_grants = {
		"DELETE FROM coord_internal.use_grant WHERE kind = 'saga' AND name = $1",
		1, {TEXTOID}
	};
	static Statement drop_name = {
		"DELETE FROM coord_internal.saga_name WHERE name = $1", 1, {TEXTOID}
	};
	char	   *name = check_text(fcinfo, 0, "name");
	Oid			user = GetUserId();
	Oid			owner;
	QueryScope	scope;
	Datum		value;
	bool		isnull;
	int64		instances;

	installation_check();
	saga_check_not_reserved(name);
	owner = saga_name_owner(name);
	if (!OidIsValid(owner) ||
		(!is_member_of_role(user, owner) && !access_sees_all(user)))
		PG_RETURN_BOOL(false);	/* to him there is no such saga */
	saga_lock_name(name, AccessExclusiveLock);
	(void) lock_own_name(name);

	query_begin(&scope);
	value = CStringGetTextDatum(name);
	query_run_latest(&running, &value, NULL, 0);
	instances = DatumGetInt64(query_value(0, 1, &isnull));
	if (instances > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("saga \"%s\" has unfinished instances", name),
				 errdetail_plural(INT64_FORMAT " instance is not finished.",
								  INT64_FORMAT " instances are not finished.",
								  (unsigned long) instances, instances),
				 errhint("Let them finish, or cancel or abandon them: SELECT id, status FROM coord.sagas WHERE name = %s AND finished_at IS NULL.",
						 quote_literal_cstr(name))));
	query_run(&drop_versions, &value, NULL, 0);
	query_run(&drop_grants, &value, NULL, 0);
	query_run(&drop_name, &value, NULL, 0);
	query_end(&scope);
	names_changed();
	PG_RETURN_BOOL(true);
}

/* For the SQL functions of the interface: the name, or 42704. */
Datum
coord_internal_check_saga_name(PG_FUNCTION_ARGS)
{
	char	   *name = check_text(fcinfo, 0, "name");

	installation_check();
	(void) saga_definition_lookup(name, 0);
	PG_RETURN_TEXT_P(cstring_to_text(name));
}
