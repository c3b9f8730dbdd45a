/*-------------------------------------------------------------------------
 *
 * saga_archive.c
 *	  Partitions of the archive and of the log: made ahead, dropped whole.
 *
 * Partitions are made at run time as tables of their own with their own key,
 * then attached, which locks the parent against nothing but another one that
 * does the same.  They are ranges of time, an eighth of the retention long; one
 * beyond the present is always there.  A partition whose end is older than the
 * retention is dropped, with the keys of the sagas in it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/clock.h"
#include "base/guc.h"
#include "base/installation.h"
#include "base/query.h"
#include "saga/saga_task.h"

#define FRACTION 8

static const struct
{
	const char *parent;
	const char *index;			/* what is to be indexed in each partition */
}			parents[] =
{
	{"saga_archive", "ADD PRIMARY KEY (id)"},
	{"saga_log", "ADD PRIMARY KEY (saga_id, at, id)"},
};

/* Until when this process knows partitions to exist. */
static TimestampTz covered_from = 0;
static TimestampTz covered_until = 0;
static int	covered_retention = 0;	/* coord.saga_retention then */
static Oid	covered_namespace = InvalidOid; /* another after CREATE EXTENSION */
static bool callbacks_registered = false;

/* Length of a new partition. */
static int64
partition_width(void)
{
	return Max(guc_saga_retention * USECS_PER_MINUTE / FRACTION, USECS_PER_MINUTE);
}

/* Does this process know that what finishes now has a partition to go to? */
static bool
partitions_are_ready(void)
{
	TimestampTz now = clock_now();

	return covered_from <= now && now < covered_until &&
		covered_retention == guc_saga_retention &&
		covered_namespace == get_namespace_oid("coord_internal", true);
}

/*
 * The settings under which bounds are written and read and tables are made must
 * not be those of the caller's session.  Returns the level to go back to.
 */
static int
neutral_settings(void)
{
	static const struct
	{
		const char *name;
		const char *value;
	}			settings[] =
	{
		{"DateStyle", "ISO, YMD"},
		{"TimeZone", "UTC"},
		{"default_table_access_method", "heap"},
		{"default_tablespace", ""},
	};
	int			level = NewGUCNestLevel();

	for (int i = 0; i < lengthof(settings); i++)
		(void) set_config_option(settings[i].name, settings[i].value,
								 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE,
								 true, 0, false);
	return level;
}

/* Partitions made in what is rolled back are not there. */
static void
xact_callback(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
		covered_until = 0;
}

static void
subxact_callback(SubXactEvent event, SubTransactionId mine,
				 SubTransactionId parent, void *arg)
{
	if (event == SUBXACT_EVENT_ABORT_SUB)
		covered_until = 0;
}

static char *
quote_time(TimestampTz time)
{
	return quote_literal_cstr(DatumGetCString(DirectFunctionCall1(timestamptz_out,
																  TimestampTzGetDatum(time))));
}

/* Partitions of a parent as rows of (name, from, to). */
#define PARTITIONS \
	"SELECT c.relname::text," \
	" substring(pg_get_expr(c.relpartbound, c.oid) FROM 'FROM \\(''([^'']+)''\\)')::timestamptz," \
	" substring(pg_get_expr(c.relpartbound, c.oid) FROM 'TO \\(''([^'']+)''\\)')::timestamptz" \
	" FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid" \
	" WHERE i.inhparent = to_regclass('coord_internal.' || $1)"

/*
 * Is there a partition of "parent" at "at"?  Else make one that fits between
 * its neighbours.  Returns its end.  The parent is locked by the caller if
 * "make" is set.
 */
static TimestampTz
cover(int which, TimestampTz at, bool make)
{
	static Statement read = {PARTITIONS, 1, {TEXTOID}};
	const char *parent = parents[which].parent;
	int64		width = partition_width();
	TimestampTz from = at - at % width;
	TimestampTz to = from + width;
	Datum		value;
	uint64		rows;
	char	   *name;
	struct pg_tm tm;
	fsec_t		fsec;
	int			tz;

	value = CStringGetTextDatum(parent);
	rows = query_run_latest(&read, &value, NULL, 0);
	for (uint64 i = 0; i < rows; i++)
	{
		bool		isnull;
		TimestampTz start = DatumGetTimestampTz(query_value(i, 2, &isnull));
		TimestampTz end = DatumGetTimestampTz(query_value(i, 3, &isnull));

		if (start <= at && at < end)
			return end;
		if (end <= at)
			from = Max(from, end);
		else
			to = Min(to, start);
	}
	if (!make)
		return 0;

	if (timestamp2tm(from, &tz, &tm, &fsec, NULL, NULL) != 0)
		elog(ERROR, "timestamp out of range");
	name = psprintf("coord_internal.%s_%04d%02d%02d_%02d%02d%02d_%06d", parent,
					tm.tm_year, tm.tm_mon, tm.tm_mday, tm.tm_hour, tm.tm_min,
					tm.tm_sec, (int) fsec);
	query_utility(psprintf("CREATE TABLE %s (LIKE coord_internal.%s INCLUDING DEFAULTS INCLUDING CONSTRAINTS)",
						   name, parent));
	query_utility(psprintf("ALTER TABLE %s %s", name, parents[which].index));
	query_utility(psprintf("ALTER TABLE coord_internal.%s ATTACH PARTITION %s FOR VALUES FROM (%s) TO (%s)",
						   parent, name, quote_time(from), quote_time(to)));
	return to;
}

/*
 * Make sure that what finishes now and in a while has a partition to go to.
 * Costs nothing while that is known; else writes, so it needs a transaction
 * that may.  Without "ahead_too" only what is needed now is made: until the end
 * of this transaction others wait to make theirs, and a user's may be long.
 */
void
saga_ensure_partitions(bool ahead_too)
{
	TimestampTz now = clock_now();
	int64		ahead = partition_width() / 2;
	QueryScope	scope;
	int			guc_level;

	if (partitions_are_ready())
		return;
	if (!callbacks_registered)
	{
		RegisterXactCallback(xact_callback, NULL);
		RegisterSubXactCallback(subxact_callback, NULL);
		callbacks_registered = true;
	}

	query_begin(&scope);
	guc_level = neutral_settings();
	covered_until = 0;
	for (int i = 0; i < lengthof(parents); i++)
	{
		TimestampTz times[2];

		times[0] = now;
		times[1] = now + ahead;
		for (int j = 0; j < (ahead_too ? 2 : 1); j++)
		{
			TimestampTz end = cover(i, times[j], false);

			if (end == 0)
			{
				query_utility(psprintf("LOCK TABLE coord_internal.%s IN SHARE UPDATE EXCLUSIVE MODE",
									   parents[i].parent));
				end = cover(i, times[j], true);
			}
			if (j == 0 && (covered_until == 0 || end < covered_until))
				covered_until = end;
		}
	}
	AtEOXact_GUC(true, guc_level);
	query_end(&scope);
	covered_from = now;

	/* Look again well before the end, when the next one is to be made. */
	if (ahead_too)
		covered_until = Min(covered_until, now + ahead / 2);
	covered_retention = guc_saga_retention;
	covered_namespace = get_namespace_oid("coord_internal", false);
}

/* The partition to drop next; its parent's index in "which". */
static char *
find_expired(MemoryContext context, int *which)
{
	static Statement read = {
		"SELECT name FROM (" PARTITIONS ") p (name, since, until) WHERE until <= $2"
		" ORDER BY until LIMIT 1",
		2, {TEXTOID, TIMESTAMPTZOID}
	};
	TimestampTz cutoff = clock_now() - guc_saga_retention * USECS_PER_MINUTE;
	char	   *name = NULL;

	for (int i = 0; i < lengthof(parents) && name == NULL; i++)
	{
		QueryScope	scope;
		Datum		values[2];
		int			guc_level;

		query_begin(&scope);
		guc_level = neutral_settings();
		values[0] = CStringGetTextDatum(parents[i].parent);
		values[1] = TimestampTzGetDatum(cutoff);
		if (query_run(&read, values, NULL, 1) > 0)
			name = query_text(context, 0, 1);
		AtEOXact_GUC(true, guc_level);
		query_end(&scope);
		*which = i;
	}
	return name;
}

/* One transaction of housekeeping; false when there was nothing to drop. */
static bool
drop_one(void)
{
	QueryScope	scope;
	char	   *name;
	int			which;

	if (!installation_lock(AccessShareLock))
		return false;
	name = find_expired(CurrentMemoryContext, &which);
	if (name == NULL)
		return false;
	query_begin(&scope);

	/* Never wait for a reader, and never make others wait behind us. */
	query_utility(psprintf("LOCK TABLE ONLY coord_internal.%s IN ACCESS EXCLUSIVE MODE NOWAIT",
						   parents[which].parent));
	query_utility(psprintf("LOCK TABLE coord_internal.%s IN ACCESS EXCLUSIVE MODE NOWAIT",
						   quote_identifier(name)));
	if (which == 0)
		query_utility(psprintf("DELETE FROM coord_internal.saga_key k USING coord_internal.%s a"
							   " WHERE a.key IS NOT NULL AND k.saga_id = a.id",
							   quote_identifier(name)));
	query_utility(psprintf("DROP TABLE coord_internal.%s", quote_identifier(name)));
	query_end(&scope);
	return true;
}

/*
 * Is anything defined?  Before that nothing can finish, and a restore that has
 * just created the extension is about to create the dump's partitions.
 */
static bool
any_definition(void)
{
	static Statement read = {
		"SELECT FROM coord_internal.saga_version LIMIT 1", 0, {0}
	};
	QueryScope	scope;
	bool		result;

	query_begin(&scope);
	result = query_run(&read, NULL, NULL, 1) > 0;
	query_end(&scope);
	return result;
}

/*
 * Make partitions ahead and drop expired ones.  Runs its own transactions; a
 * partition that is in use is left for the next time.
 */
void
saga_housekeeping(void)
{
	MemoryContext context = CurrentMemoryContext;
	volatile bool again = false;

	StartTransactionCommand();
	if (installation_lock(AccessShareLock))
	{
		PushActiveSnapshot(GetTransactionSnapshot());
		again = installation_state() == ENGINE_RUNNING && any_definition();
		if (again)
		{
			saga_ensure_partitions(true);
			saga_forget_gone_tasks();
		}
		PopActiveSnapshot();
	}
	CommitTransactionCommand();

	while (again)
	{
		PG_TRY();
		{
			StartTransactionCommand();
			PushActiveSnapshot(GetTransactionSnapshot());
			again = drop_one();
			PopActiveSnapshot();
			CommitTransactionCommand();
		}
		PG_CATCH();
		{
			ErrorData  *error;

			MemoryContextSwitchTo(context);
			error = CopyErrorData();
			FlushErrorState();
			AbortCurrentTransaction();
			again = false;
			if (error->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE)
				ereport(LOG,
						(errmsg("coord: could not drop an expired partition: %s",
								error->message)));
			FreeErrorData(error);
		}
		PG_END_TRY();
	}
	MemoryContextSwitchTo(context);
}
