/*-------------------------------------------------------------------------
 *
 * saga_queue_config.c
 *	  What is set for a queue, and who may use it.
 *
 * A queue is seen by the roles that it belongs to (coord_internal.queue_role:
 * whose definitions use it, or who configured it first), by coord_admin, and by
 * those who were given its use.  Which of its tasks a role may claim and end is
 * another question, answered task by task: those of owners that it is a member
 * of, and those that a grantor of its use is a member of.  So whoever puts a
 * queue's name into a definition of his can neither read the tasks of others
 * there, nor let somebody do it by a grant.
 *
 * Every claim asks, so each process keeps what it has read until
 * coord_internal.queue is invalidated, which all changes do, or the serial in
 * shared memory changes: that comes first, and whoever waits is woken by it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/access.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/installation.h"
#include "base/query.h"
#include "saga/saga.h"
#include "saga/saga_queue.h"
#include "saga/saga_task.h"

PG_FUNCTION_INFO_V1(coord_queue_configure);

/* Queues by name; emptied when coord_internal.queue changes anywhere. */
static HTAB *configs = NULL;
static bool configs_valid = false;
static Oid	queue_relid = InvalidOid;

static Oid
queue_relation(void)
{
	return get_relname_relid("queue", get_namespace_oid("coord_internal", false));
}

static void
relcache_callback(Datum arg, Oid relid)
{
	if (!OidIsValid(relid) || relid == queue_relid)
		configs_valid = false;
}

/* Oids of the last result's column, in TopMemoryContext; NULL for none. */
static Oid *
get_oids(int column, int *count)
{
	bool		isnull;
	Datum		value = query_value(0, column, &isnull);
	Datum	   *elements;
	Oid		   *result;

	*count = 0;
	if (isnull)
		return NULL;
	deconstruct_array(DatumGetArrayTypeP(value), OIDOID, sizeof(Oid), true,
					  TYPALIGN_INT, &elements, NULL, count);
	if (*count == 0)
		return NULL;
	result = MemoryContextAlloc(TopMemoryContext, sizeof(Oid) * *count);
	for (int i = 0; i < *count; i++)
		result[i] = DatumGetObjectId(elements[i]);
	return result;
}

static void
free_config(QueueConfig *config)
{
	if (config->roles)
		pfree(config->roles);
	if (config->grantees)
		pfree(config->grantees);
	if (config->grantors)
		pfree(config->grantors);
	hash_search(configs, config->name, HASH_REMOVE, NULL);
}

static void
prepare_configs(void)
{
	HASH_SEQ_STATUS status;
	QueueConfig *config;

	if (configs == NULL)
	{
		HASHCTL		ctl = {0};

		ctl.keysize = CHECK_NAME_MAX + 1;
		ctl.entrysize = sizeof(QueueConfig);
		ctl.hcxt = TopMemoryContext;
		configs = hash_create("coord queues", 16, &ctl,
							  HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
		CacheRegisterRelcacheCallback(relcache_callback, (Datum) 0);
	}
	if (configs_valid)
		return;
	hash_seq_init(&status, configs);
	while ((config = hash_seq_search(&status)) != NULL)
		free_config(config);
	queue_relid = queue_relation();
	configs_valid = true;
}

/*
 * A queue as configured now; NULL when it is not known.  Valid until the next
 * call.
 */
QueueConfig *
queue_config(const char *queue)
{
	static Statement read = {
		"SELECT paused, coalesce(max_running, 0), coalesce(rate_limit, 0),"
		" ARRAY(SELECT role FROM coord_internal.queue_role WHERE queue = $1),"
		" ARRAY(SELECT role FROM coord_internal.use_grant"
		"  WHERE kind = 'queue' AND name = $1 ORDER BY role, granted_by),"
		" ARRAY(SELECT granted_by FROM coord_internal.use_grant"
		"  WHERE kind = 'queue' AND name = $1 ORDER BY role, granted_by)"
		" FROM coord_internal.queue WHERE name = $1",
		1, {TEXTOID}
	};
	QueueConfig *config;
	QueueConfig fresh = {0};
	QueryScope	scope;
	Datum		value;
	uint64		rows;
	bool		isnull;

	if (strlen(queue) > CHECK_NAME_MAX)
		return NULL;
	prepare_configs();
	fresh.serial = queue_serial(queue);
	config = hash_search(configs, queue, HASH_FIND, NULL);
	if (config != NULL && config->serial == fresh.serial && fresh.serial != 0)
		return config;
	if (config != NULL)
		free_config(config);

	query_begin(&scope);
	value = CStringGetTextDatum(queue);
	rows = query_run_latest(&read, &value, NULL, 1);
	if (rows > 0)
	{
		fresh.paused = DatumGetBool(query_value(0, 1, &isnull));
		fresh.max_running = DatumGetInt32(query_value(0, 2, &isnull));
		fresh.rate_limit = DatumGetFloat8(query_value(0, 3, &isnull));
		fresh.roles = get_oids(4, &fresh.nroles);
		fresh.grantees = get_oids(5, &fresh.ngrants);
		fresh.grantors = get_oids(6, &fresh.ngrants);
	}
	query_end(&scope);
	if (rows == 0)
		return NULL;
	config = hash_search(configs, queue, HASH_ENTER, NULL);
	strlcpy(fresh.name, queue, sizeof(fresh.name));
	*config = fresh;
	return config;
}

/* Is the current user a member of a role that the queue belongs to? */
static bool
is_mine(const QueueConfig *config)
{
	Oid			user = GetUserId();

	if (installation_is_foreign())
		return false;
	for (int i = 0; i < config->nroles; i++)
	{
		if (is_member_of_role(user, config->roles[i]))
			return true;
	}
	return false;
}

/* May he see it? */
static bool
is_visible(const QueueConfig *config)
{
	QueueAccess access;

	if (is_mine(config))
		return true;
	queue_access(config, &access);
	return access.all || access.nothers > 0;
}

/* Whose tasks of a queue may the current user claim and end? */
void
queue_access(const QueueConfig *config, QueueAccess *access)
{
	Oid			user = GetUserId();

	access->all = access_sees_all(user);
	access->nothers = 0;
	access->others = NULL;
	if (access->all || config == NULL || config->ngrants == 0 || installation_is_foreign())
		return;
	access->others = palloc(sizeof(Oid) * config->ngrants);
	for (int i = 0; i < config->ngrants; i++)
	{
		if (!is_member_of_role(user, config->grantees[i]))
			continue;
		access->all = access->all || access_sees_all(config->grantors[i]);
		access->others[access->nothers++] = config->grantors[i];
	}
}

/* May the current user end tasks of "owner" in this queue? */
bool
queue_may_act(const char *queue, Oid owner)
{
	QueueAccess access;

	if (!installation_is_foreign() && is_member_of_role(GetUserId(), owner))
		return true;
	queue_access(queue_config(queue), &access);
	for (int i = 0; i < access.nothers && !access.all; i++)
		access.all = is_member_of_role(access.others[i], owner);
	return access.all;
}

/* 42704 for a queue that does not exist or that the caller may not see. */
static void
queue_unknown(const char *queue)
{
	static Statement read = {
		"SELECT name FROM coord_internal.queue ORDER BY name LIMIT 1000", 0, {0}
	};
	List	   *candidates = NIL;
	MemoryContext context = CurrentMemoryContext;
	QueryScope	scope;
	uint64		rows;
	char	  **names;
	char	   *hint;

	query_begin(&scope);
	rows = query_run_latest(&read, NULL, NULL, 0);
	names = MemoryContextAlloc(context, sizeof(char *) * (rows + 1));
	for (uint64 i = 0; i < rows; i++)
		names[i] = query_text(context, i, 1);
	query_end(&scope);
	for (uint64 i = 0; i < rows; i++)
	{
		QueueConfig *config = queue_config(names[i]);

		if (config != NULL && is_visible(config))
			candidates = lappend(candidates, names[i]);
	}
	hint = check_near_names(queue, candidates);
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("queue \"%s\" does not exist", queue),
			 hint ? errhint("%s", hint) : 0));
}

/* The same as queue_config(); 42704 when the caller may not see it. */
QueueConfig *
queue_config_or_error(const char *queue)
{
	QueueConfig *config = queue_config(queue);

	if (config == NULL || !is_visible(config))
	{
		queue_unknown(queue);
		pg_unreachable();
	}
	return config;
}

/*
 * 42704 when there is no such queue or the caller may not see it, 42501 when he
 * is no member of a role that it belongs to, nor of coord_admin.
 */
void
queue_check_mine(const char *queue)
{
	QueueConfig *config = queue_config_or_error(queue);

	if (!is_mine(config) && !access_sees_all(GetUserId()))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("queue \"%s\" belongs to other roles", queue),
				 errdetail("It is for members of the roles whose sagas use it, of the one that configured it first, and of coord_admin.")));
}

/* Every process reads the queue anew once this commits. */
void
queue_changed(const char *queue)
{
	CacheInvalidateRelcacheByRelid(queue_relation());
	configs_valid = false;
	queue_config_changed_at_commit(queue);
}

/* Whose queues they are, and who may use them, has changed for all. */
void
queue_forget_all(void)
{
	CacheInvalidateRelcacheByRelid(queue_relation());
	configs_valid = false;
}

/*
 * Make a queue known, and "role" one of those that it belongs to.  May read and
 * write tables; not to be called between query_begin() and query_end().
 */
void
queue_use(const char *queue, Oid role)
{
	static Statement insert = {
		"INSERT INTO coord_internal.queue (name, created_at) VALUES ($1, $2)"
		" ON CONFLICT DO NOTHING",
		2, {TEXTOID, TIMESTAMPTZOID}
	};
	static Statement insert_role = {
		"INSERT INTO coord_internal.queue_role (queue, role) SELECT $1, $2"
		" WHERE NOT EXISTS (SELECT FROM coord_internal.queue_role"
		" WHERE queue = $1 AND role = $2)",
		2, {TEXTOID, OIDOID}
	};
	QueueConfig *config = queue_config(queue);
	QueryScope	scope;
	Datum		values[2];

	for (int i = 0; config != NULL && i < config->nroles; i++)
	{
		if (config->roles[i] == role)
			return;
	}
	query_begin(&scope);
	values[0] = CStringGetTextDatum(queue);
	values[1] = TimestampTzGetDatum(clock_now());
	if (config == NULL)
		query_run(&insert, values, NULL, 0);
	values[1] = ObjectIdGetDatum(role);
	query_run(&insert_role, values, NULL, 0);
	query_end(&scope);
	queue_changed(queue);
}

/*
 * One claim at a time of a queue with a limit of running tasks, until the end of
 * the transaction; or, with "lock" false, not until then.
 */
void
queue_lock(const char *queue, bool lock)
{
	Oid			hash = DatumGetUInt32(hash_any((const unsigned char *) queue, strlen(queue)));

	if (lock)
		LockDatabaseObject(queue_relation(), hash, 0, ExclusiveLock);
	else
		UnlockDatabaseObject(queue_relation(), hash, 0, ExclusiveLock);
}

/* One task in about twelve days; less is a mistake. */
#define MIN_RATE 1e-6

/* A limit as it is stored: NULL for "no limit". */
static Datum
limit_value(FunctionCallInfo fcinfo, int argument, bool *isnull)
{
	bool		is_rate = argument == 2;
	double		value = is_rate ? PG_GETARG_FLOAT8(argument) : PG_GETARG_INT32(argument);

	if (!(value > 0) || (is_rate && value < MIN_RATE))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 is_rate ? errmsg("rate_limit must be at least %g per second", MIN_RATE) :
				 errmsg("max_running must be greater than 0"),
				 errhint("To stop a queue, set paused; for no limit, %s.",
						 is_rate ? "'infinity'" : "2147483647")));
	*isnull = is_rate ? isinf(value) : value == PG_INT32_MAX;
	return PG_GETARG_DATUM(argument);
}

/* coord.queue_configure(queue, max_running, rate_limit, paused) */
Datum
coord_queue_configure(PG_FUNCTION_ARGS)
{
	static Statement update = {
		"UPDATE coord_internal.queue SET"
		" max_running = CASE WHEN $2 THEN $3 ELSE max_running END,"
		" rate_limit = CASE WHEN $4 THEN $5 ELSE rate_limit END,"
		" paused = coalesce($6, paused)"
		" WHERE name = $1 AND (max_running, rate_limit, paused) IS DISTINCT FROM"
		" (CASE WHEN $2 THEN $3 ELSE max_running END,"
		" CASE WHEN $4 THEN $5 ELSE rate_limit END, coalesce($6, paused))",
		6, {TEXTOID, BOOLOID, INT4OID, BOOLOID, FLOAT8OID, BOOLOID}
	};
	char	   *queue = check_text(fcinfo, 0, "queue");
	QueryScope	scope;
	Datum		values[6] = {0};
	bool		nulls[6] = {false, false, true, false, true, false};
	bool		changed;

	installation_check();
	installation_check_not_foreign();
	check_name("queue name", queue);
	values[1] = BoolGetDatum(!PG_ARGISNULL(1));
	if (!PG_ARGISNULL(1))
		values[2] = limit_value(fcinfo, 1, &nulls[2]);
	values[3] = BoolGetDatum(!PG_ARGISNULL(2));
	if (!PG_ARGISNULL(2))
		values[4] = limit_value(fcinfo, 2, &nulls[4]);
	nulls[5] = PG_ARGISNULL(3);
	if (!nulls[5])
		values[5] = PG_GETARG_DATUM(3);

	if (queue_config(queue) == NULL)
	{
		queue_use(queue, GetUserId());
		access_note_role(GetUserId());
	}
	else
		queue_check_mine(queue);
	query_begin(&scope);
	values[0] = CStringGetTextDatum(queue);
	changed = query_run(&update, values, nulls, 0) > 0;
	query_end(&scope);
	if (changed)
	{
		queue_changed(queue);
		queue_resumed_at_commit(queue);
	}
	PG_RETURN_VOID();
}
