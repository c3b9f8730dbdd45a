/*-------------------------------------------------------------------------
 *
 * saga_start.c
 *	  Starting sagas.
 *
 * A start is one insert in the caller's transaction, and the doorbell at its
 * commit.  With a key it is two: the key's row decides who is first, and a
 * concurrent transaction that inserted the same key is waited for.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/errors.h"
#include "base/guc.h"
#include "base/installation.h"
#include "base/json.h"
#include "base/query.h"
#include "saga/saga_task.h"

PG_FUNCTION_INFO_V1(coord_saga_start);

/* The instance that has this key; 0: none. */
typedef struct KeyOwner
{
	int64		id;
	int64		input_hash;
} KeyOwner;

static int64
input_hash(Jsonb *input)
{
	return DatumGetInt64(DirectFunctionCall2(jsonb_hash_extended,
											 JsonbPGetDatum(input),
											 Int64GetDatum(0)));
}

/*
 * Take (name, key) for a new instance "id".  Returns the instance that has it,
 * which is "id" when it was free.  Waits for a concurrent transaction that has
 * inserted it.
 */
static KeyOwner
take_key(const char *name, const char *key, int64 id, int64 hash)
{
	static Statement insert = {
		"INSERT INTO coord_internal.saga_key (name, key, saga_id, input_hash)"
		" VALUES ($1, $2, $3, $4) ON CONFLICT (name, key) DO NOTHING",
		4, {TEXTOID, TEXTOID, INT8OID, INT8OID}
	};
	static Statement read = {
		"SELECT saga_id, input_hash FROM coord_internal.saga_key"
		" WHERE name = $1 AND key = $2",
		2, {TEXTOID, TEXTOID}
	};
	QueryScope	scope;
	Datum		values[4];
	KeyOwner	owner = {id, hash};

	query_begin(&scope);
	values[0] = CStringGetTextDatum(name);
	values[1] = CStringGetTextDatum(key);
	values[2] = Int64GetDatum(id);
	values[3] = Int64GetDatum(hash);
	if (query_run(&insert, values, NULL, 0) == 0)
	{
		bool		isnull;

		if (query_run_latest(&read, values, NULL, 1) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
					 errmsg("key \"%s\" of saga \"%s\" was given up by a concurrent transaction",
							key, name)));
		owner.id = DatumGetInt64(query_value(0, 1, &isnull));
		owner.input_hash = DatumGetInt64(query_value(0, 2, &isnull));
	}
	query_end(&scope);
	return owner;
}

/*
 * The key is taken by "owner".  Returns true when its instance is to be
 * returned, false when a new one takes the key over.
 */
static bool
use_existing(const StartOptions *options, KeyOwner owner, int64 id, int64 hash)
{
	static Statement replace = {
		"UPDATE coord_internal.saga_key SET saga_id = $3, input_hash = $4"
		" WHERE name = $1 AND key = $2 AND saga_id = $5",
		5, {TEXTOID, TEXTOID, INT8OID, INT8OID, INT8OID}
	};
	char	   *status = saga_visible_status(owner.id);

	if (status == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("key \"%s\" of saga \"%s\" is taken by a saga of another role",
						options->key, options->name)));
	if (strcmp(options->on_existing, "error") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNIQUE_VIOLATION),
				 errmsg("saga \"%s\" with key \"%s\" exists", options->name, options->key),
				 errdetail("It is saga " INT64_FORMAT ", which is %s.", owner.id, status)));
	if (strcmp(options->on_existing, "restart_failed") == 0 &&
		(strcmp(status, "failed") == 0 || strcmp(status, "compensated") == 0))
	{
		QueryScope	scope;
		Datum		values[5];

		query_begin(&scope);
		values[0] = CStringGetTextDatum(options->name);
		values[1] = CStringGetTextDatum(options->key);
		values[2] = Int64GetDatum(id);
		values[3] = Int64GetDatum(hash);
		values[4] = Int64GetDatum(owner.id);
		if (query_run(&replace, values, NULL, 0) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
					 errmsg("saga \"%s\" with key \"%s\" was restarted by a concurrent transaction",
							options->name, options->key)));
		query_end(&scope);
		return false;
	}
	if (owner.input_hash != hash)
		ereport(ERROR,
				(errcode(ERRCODE_COORD_KEY_REUSED),
				 errmsg("key \"%s\" of saga \"%s\" was used with another input",
						options->key, options->name),
				 errdetail("It belongs to saga " INT64_FORMAT ", which is %s.",
						   owner.id, status),
				 errhint("A key stands for one request: use another key for another input.")));
	return true;
}

static int64
next_id(void)
{
	static Statement next = {
		"SELECT nextval('coord_internal.saga_id')", 0, {0}
	};
	QueryScope	scope;
	int64		id;
	bool		isnull;

	query_begin(&scope);
	query_run(&next, NULL, NULL, 0);
	id = DatumGetInt64(query_value(0, 1, &isnull));
	query_end(&scope);
	return id;
}

/* A random uuid (RFC 4122 version 4). */
static pg_uuid_t *
random_uuid(void)
{
	pg_uuid_t  *uuid = palloc(UUID_LEN);

	if (!pg_strong_random(uuid->data, UUID_LEN))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate random values")));
	uuid->data[6] = (uuid->data[6] & 0x0f) | 0x40;
	uuid->data[8] = (uuid->data[8] & 0x3f) | 0x80;
	return uuid;
}

/*
 * Start a saga for the current user, or find the one that has the key.  Checks
 * everything first; changes nothing when it raises an error.
 */
int64
saga_start(const StartOptions *options, bool *existing)
{
	static Statement insert = {
		"INSERT INTO coord_internal.saga (id, definition, owner, key, input,"
		" priority, labels, correlation_id, created_at, wake_at, deadline_at, start_at, home,"
		" parent_id)"
		" VALUES (coalesce($1, nextval('coord_internal.saga_id')), $2, $3, $4, $5,"
		" $6, $7, $8, $9, $10, $11, $12, $13, $14) RETURNING id",
		14, {INT8OID, INT8OID, OIDOID, TEXTOID, JSONBOID, INT4OID, JSONBOID,
		UUIDOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID,
		INT8OID, INT8OID}
	};
	Oid			user = OidIsValid(options->owner) ? options->owner : GetUserId();
	TimestampTz now = clock_now();
	TimestampTz begin = options->start_at ? options->start_at : now;
	TimestampTz wake_at = Max(begin, now) + options->hold_us;
	Interval   *deadline;
	pg_uuid_t  *correlation_id = options->correlation_id;
	QueryScope	scope;
	Datum		values[14];
	bool		nulls[14] = {false};
	SagaDef    *def;
	int64		id = 0;
	bool		isnull;

	*existing = false;
	installation_check();
	if (options->labels != NULL && !json_is_object(options->labels))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("labels must be a JSON object")));
	if (options->key != NULL)
		check_name("key", options->key);
	if (strcmp(options->on_existing, "return") != 0 &&
		strcmp(options->on_existing, "error") != 0 &&
		strcmp(options->on_existing, "restart_failed") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown value \"%s\" of on_existing", options->on_existing),
				 errhint("It is return, error or restart_failed.")));

	/* See coord_saga_drop(): this lock comes before the look-up. */
	if (options->definition != 0)
		def = saga_definition_by_id(options->definition);
	else
	{
		saga_check_not_reserved(options->name);
		saga_lock_name(options->name, AccessShareLock);
		def = saga_definition_by_id(saga_definition_lookup(options->name, options->version));
	}
	saga_definition_check_execute(def, user);
	for (int i = 0; i < def->nsteps && def->waits; i++)
	{
		if (def->steps[i].kind == STEP_QUEUE)
			queue_use(def->steps[i].queue, user);	/* to claim his own tasks */
	}
	deadline = options->deadline ? options->deadline : def->deadline;
	if (deadline && clock_interval_us(deadline) <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("deadline must be a positive interval")));
	if (correlation_id == NULL && guc_correlation_id != NULL && *guc_correlation_id != '\0')
		correlation_id = DatumGetUUIDP(DirectFunctionCall1(uuid_in,
														   CStringGetDatum(guc_correlation_id)));
	if (correlation_id == NULL)
		correlation_id = random_uuid();

	if (options->key != NULL)
	{
		int64		hash = input_hash(options->input);
		KeyOwner	owner;

		id = next_id();
		owner = take_key(options->name, options->key, id, hash);
		if (owner.id != id && use_existing(options, owner, id, hash))
		{
			*existing = true;
			return owner.id;
		}
	}

	query_begin(&scope);
	values[0] = Int64GetDatum(id);
	nulls[0] = id == 0;
	values[1] = Int64GetDatum(def->id);
	values[2] = ObjectIdGetDatum(user);
	nulls[3] = options->key == NULL;
	if (!nulls[3])
		values[3] = CStringGetTextDatum(options->key);
	values[4] = JsonbPGetDatum(options->input);
	values[5] = Int32GetDatum(options->priority);
	values[6] = PointerGetDatum(options->labels);
	nulls[6] = options->labels == NULL;
	values[7] = UUIDPGetDatum(correlation_id);
	values[8] = TimestampTzGetDatum(now);
	values[9] = TimestampTzGetDatum(wake_at);
	nulls[10] = deadline == NULL;
	if (!nulls[10])
		values[10] = TimestampTzGetDatum(Max(begin, now) + clock_interval_us(deadline));
	values[11] = TimestampTzGetDatum(begin);
	nulls[11] = begin <= now;
	values[12] = Int64GetDatum(installation_home());
	values[13] = Int64GetDatum(options->parent);
	nulls[13] = options->parent == 0;
	query_run(&insert, values, nulls, 0);
	id = DatumGetInt64(query_value(0, 1, &isnull));
	query_end(&scope);

	doorbell_due_at_commit(id, options->priority, user, wake_at);
	return id;
}

/* coord.saga_start(...) */
Datum
coord_saga_start(PG_FUNCTION_ARGS)
{
	StartOptions options = {0};
	bool		existing;

	options.name = check_text(fcinfo, 0, "name");
	if (PG_ARGISNULL(1))
	{
		JsonWriter	writer = {0};

		json_begin_object(&writer);
		json_end_object(&writer);
		options.input = json_finish(&writer);
	}
	else
		options.input = PG_GETARG_JSONB_P(1);
	options.key = check_optional_text(fcinfo, 2);
	if (!PG_ARGISNULL(3))
		options.correlation_id = PG_GETARG_UUID_P(3);
	if (!PG_ARGISNULL(4))
	{
		options.version = PG_GETARG_INT32(4);
		if (options.version <= 0)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("saga \"%s\" has no version %d", options.name, options.version)));
	}
	if (!PG_ARGISNULL(5))
	{
		options.start_at = PG_GETARG_TIMESTAMPTZ(5);
		if (TIMESTAMP_NOT_FINITE(options.start_at))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("start_at must be finite")));
	}
	if (!PG_ARGISNULL(6))
		options.deadline = PG_GETARG_INTERVAL_P(6);
	options.priority = PG_ARGISNULL(7) ? 0 : PG_GETARG_INT32(7);
	if (!PG_ARGISNULL(8))
		options.labels = PG_GETARG_JSONB_P(8);
	options.on_existing = PG_ARGISNULL(9) ? "return" :
		text_to_cstring(PG_GETARG_TEXT_PP(9));
	PG_RETURN_INT64(saga_start(&options, &existing));
}
