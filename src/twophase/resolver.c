/*-------------------------------------------------------------------------
 *
 * resolver.c
 *	  The process that finishes what sessions left behind.
 *
 * One for each database that has something to finish, started by the launcher when
 * a session hands over, when the server starts, and from time to time; it goes home
 * when nothing is left.  It is not one of the workers: those may all be in long steps.
 *
 * Participants are asked side by side, each at its own pace, so a slow one delays
 * nobody.  From each, in this order: what is prepared there; here, who is active; the
 * decisions, under a fresh snapshot; then what is still prepared there.  See
 * twophase_shared.c for why the order is what makes "no decision" mean "not
 * committed".  What is prepared and neither ours to decide nor decided is in doubt:
 * shown, and never guessed.
 *
 * A lock over there, held while we look, keeps a second resolver of the same cluster
 * away: that would be a copy of this server, which knows other decisions.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <sys/stat.h>

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/defrem.h"
#include "libpq-fe.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "base/access.h"
#include "base/commit_level.h"
#include "base/compat.h"
#include "base/debug_point.h"
#include "base/guc.h"
#include "base/identity.h"
#include "base/installation.h"
#include "base/partition.h"
#include "base/query.h"
#include "lock/lock.h"
#include "twophase/commit.h"
#include "twophase/resolve.h"
#include "twophase/twophase_shared.h"

/* With nothing to do for this long it goes home. */
#define STAY_US (5 * USECS_PER_SEC)

/* When something could not be finished: how long until the next try. */
#define RETRY_MIN_US (1 * USECS_PER_SEC)
#define RETRY_MAX_US (10 * USECS_PER_SEC)

/*
 * After a crash: for how long something that had been sent may still be prepared; and
 * how long anybody may say so.
 */
#define LATE_US (60 * USECS_PER_SEC)
#define LATE_MAX_US (3600 * USECS_PER_SEC)

/* Looks for no reason, as long as decisions are kept. */
#define LOOK_LATER_US (600 * USECS_PER_SEC)

static TwophaseDatabase *mine = NULL;
static bool orderly_end = false;

static bool may_drop(const char *partition);

static const PartitionParent parents[] =
{
	{"twophase_decision", "ADD PRIMARY KEY (gtid)", may_drop},
};

static PartitionSet decisions = {parents, lengthof(parents), &guc_twophase_retention};

/*
 * A partition with a decision that somebody has not acknowledged is kept.  How far
 * decisions are forgotten is written down together with it.
 */
static bool
may_drop(const char *partition)
{
	int			rows;

	rows = SPI_execute(psprintf("SELECT FROM %s d, unnest(d.mappings) m"
								" JOIN coord_internal.twophase_participant p ON p.mapping = m"
								" WHERE p.acked_gtid < d.gtid LIMIT 1", partition), true, 1);
	if (rows != SPI_OK_SELECT || SPI_processed > 0)
		return false;
	query_utility(psprintf("UPDATE coord_internal.twophase_cluster SET forgotten_gtid ="
						   " greatest(forgotten_gtid, (SELECT coalesce(max(gtid), 0) FROM %s))",
						   partition));
	return true;
}

static void
resolver_exit(int code, Datum arg)
{
	LWLockAcquire(&twophase_shared->lock, LW_EXCLUSIVE);
	if (mine->resolver_pid == MyProcPid)
		mine->resolver_pid = 0;
	if (!orderly_end)
	{
		mine->wanted = true;
		mine->retry_at = GetCurrentTimestamp() + RETRY_MIN_US;
	}
	LWLockRelease(&twophase_shared->lock);
	doorbell_wake_launcher();
}

/*
 * Go home.  "at": when to come again, unless it is asked for sooner; DT_NOEND: only
 * when it is asked for; 0: it may not act, and whatever was asked for is forgotten.
 */
static void
finish(TimestampTz at)
{
	LWLockAcquire(&twophase_shared->lock, LW_EXCLUSIVE);
	if (mine->wanted && at != 0)
	{
		LWLockRelease(&twophase_shared->lock);
		return;
	}
	mine->resolver_pid = 0;
	if (at == 0 || mine->next_at == 0 || mine->next_at > at)
		mine->next_at = at == DT_NOEND ? 0 : at;
	LWLockRelease(&twophase_shared->lock);
	orderly_end = true;
	proc_exit(0);
}

/* What tells this data directory from a copy of it. */
static char *
control_file_mark(void)
{
	struct stat file;

	if (stat("global/pg_control", &file) != 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not stat file \"%s\": %m", "global/pg_control")));
	return psprintf(UINT64_FORMAT, (uint64) file.st_ino);
}

/*
 * Which incarnation is this?  The last one, if it had the same system identifier,
 * database, timeline and control file; else a new one begins.  Its number is random:
 * the next one may have been given already, in a history that was lost.
 */
static void
find_incarnation(void)
{
	static Statement find = {
		"WITH me AS (SELECT $1 AS system_identifier, $2 AS database, $3 AS timeline, $4 AS control_file),"
		" last AS (SELECT i.* FROM coord_internal.twophase_incarnation i WHERE control_file <> ''"
		"  ORDER BY first_gtid DESC LIMIT 1),"
		" made AS (INSERT INTO coord_internal.twophase_incarnation"
		"  (id, system_identifier, database, timeline, control_file, since, first_gtid)"
		"  SELECT floor(random() * 2147483646)::int + 1, me.*, $5, $6 FROM me"
		"  WHERE NOT EXISTS (SELECT FROM last WHERE (last.system_identifier, last.database,"
		"   last.timeline, last.control_file) = (me.system_identifier, me.database, me.timeline, me.control_file))"
		"  RETURNING id, first_gtid)"
		" SELECT i.id, (SELECT id FROM coord_internal.twophase_cluster LIMIT 1), i.first_gtid"
		" FROM (SELECT * FROM made UNION ALL SELECT id, first_gtid FROM last"
		"  ORDER BY first_gtid DESC LIMIT 1) i",
		6, {INT8OID, OIDOID, INT8OID, TEXTOID, TIMESTAMPTZOID, INT8OID}
	};
	static Statement name = {
		"INSERT INTO coord_internal.twophase_cluster SELECT gen_random_uuid()"
		" WHERE NOT EXISTS (SELECT FROM coord_internal.twophase_cluster)",
		0, {0}
	};
	QueryScope	scope;
	Datum		values[6];
	bool		isnull;
	int			incarnation;
	int64		began;
	Oid			installation;
	pg_uuid_t	cluster;
	int64		first = lock_token_next();

	query_begin(&scope);
	query_run(&name, NULL, NULL, 0);
	values[0] = Int64GetDatum((int64) GetSystemIdentifier());
	values[1] = ObjectIdGetDatum(MyDatabaseId);
	values[2] = Int64GetDatum((int64) GetWALInsertionTimeLine());
	values[3] = CStringGetTextDatum(control_file_mark());
	values[4] = TimestampTzGetDatum(GetCurrentTimestamp());
	values[5] = Int64GetDatum(first);
	query_run(&find, values, NULL, 0);
	incarnation = query_int4(0, 1);
	began = query_int8(0, 3);
	installation = get_namespace_oid("coord_internal", false);
	cluster = *DatumGetUUIDP(query_value(0, 2, &isnull));
	query_end(&scope);

	/* Not before it is on disk: gids that bear it must find it again. */
	commit_durably();
	ForceSyncCommit();
	PopActiveSnapshot();
	CommitTransactionCommand();
	LWLockAcquire(&twophase_shared->lock, LW_EXCLUSIVE);
	mine->incarnation = incarnation;
	mine->installation = installation;
	mine->nunacknowledged = 0;
	mine->many = false;
	mine->late_until = GetCurrentTimestamp() + LATE_US;
	mine->cluster = cluster;
	mine->first_gtid = first;
	mine->began_gtid = began;
	LWLockRelease(&twophase_shared->lock);
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
}

/*
 * Write down the mappings that sessions ask for, and see to partitions.  Those who
 * asked look again when it is committed.
 */
static void
answer_requests(void)
{
	static Statement note = {
		"INSERT INTO coord_internal.twophase_participant (mapping, server, role, since)"
		" SELECT m.oid, m.umserver, $2, $3 FROM pg_user_mapping m WHERE m.oid = $1"
		" ON CONFLICT (mapping) DO UPDATE SET role = excluded.role",
		3, {OIDOID, OIDOID, TIMESTAMPTZOID}
	};
	int			count;
	Oid			mappings[TWOPHASE_REQUESTS];
	Oid			roles[TWOPHASE_REQUESTS];
	QueryScope	scope;
	Datum		values[3];
	TimestampTz now = GetCurrentTimestamp();

	LWLockAcquire(&twophase_shared->lock, LW_EXCLUSIVE);
	count = mine->nrequests;
	for (int i = 0; i < count; i++)
	{
		mappings[i] = mine->requests[i].mapping;
		roles[i] = mine->requests[i].role;
	}
	mine->nrequests = 0;
	LWLockRelease(&twophase_shared->lock);

	StartTransactionCommand();
	if (!installation_exists() || !installation_lock(AccessShareLock))
	{
		CommitTransactionCommand();
		finish(0);
	}
	installation_check();
	PushActiveSnapshot(GetTransactionSnapshot());
	if (installation_state() != ENGINE_RUNNING && installation_state() != ENGINE_PAUSED)
	{
		PopActiveSnapshot();
		CommitTransactionCommand();
		finish(0);
	}
	if (mine->incarnation == 0 ||
		mine->installation != get_namespace_oid("coord_internal", false))
		find_incarnation();
	partition_ensure(&decisions, true);
	query_begin(&scope);
	for (int i = 0; i < count; i++)
	{
		values[0] = ObjectIdGetDatum(mappings[i]);
		values[1] = ObjectIdGetDatum(roles[i]);
		values[2] = TimestampTzGetDatum(GetCurrentTimestamp());
		query_run(&note, values, NULL, 0);
	}
	query_end(&scope);
	for (int i = 0; i < count; i++)
		access_note_role(roles[i]);
	if (count > 0)
	{
		commit_durably();
		ForceSyncCommit();
	}
	PopActiveSnapshot();
	CommitTransactionCommand();
	LWLockAcquire(&twophase_shared->lock, LW_EXCLUSIVE);
	mine->covered_from = Min(decisions.covered_from, now);
	mine->covered_until = decisions.covered_until;
	LWLockRelease(&twophase_shared->lock);
	ConditionVariableBroadcast(&mine->answered);
}

/*
 * Look at all participants.  Not in a copy, not while coord is paused or disabled:
 * then it goes home.
 */
static bool
look(MemoryContext context)
{
	bool		may_act;
	bool		all = true;

	StartTransactionCommand();
	may_act = installation_exists() && installation_lock(AccessShareLock);
	if (may_act)
	{
		installation_check();
		PushActiveSnapshot(GetTransactionSnapshot());
		may_act = installation_state() == ENGINE_RUNNING;
		PopActiveSnapshot();
		if (may_act)
			all = resolve(mine, InvalidOid, NULL);
	}
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	if (!may_act)
	{
		mine->waits_for_resume = true;
		finish(0);
	}
	return all;
}

/*
 * Applications' transactions whose time is up; see twophase_app.c.  Comes again when
 * the next one's is.
 */
static void
look_at_applications(MemoryContext context)
{
	TimestampTz next = 0;

	StartTransactionCommand();
	if (installation_exists() && installation_lock(AccessShareLock))
	{
		installation_check();
		PushActiveSnapshot(GetTransactionSnapshot());
		if (installation_state() == ENGINE_RUNNING)
			next = twophase_app_sweep();
		PopActiveSnapshot();
	}
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	if (next != 0)
		twophase_want_resolver(mine, Max(next, GetCurrentTimestamp()));
}

/* Is a decision kept, so that something prepared might come back? */
static bool
any_decision(void)
{
	static Statement read = {
		"SELECT FROM coord_internal.twophase_decision LIMIT 1", 0, {0}
	};
	QueryScope	scope;
	bool		result;

	StartTransactionCommand();
	result = installation_exists() && installation_lock(AccessShareLock);
	if (result)
	{
		query_begin(&scope);
		result = query_run_latest(&read, NULL, NULL, 1) > 0;
		query_end(&scope);
	}
	CommitTransactionCommand();
	return result;
}

/* The loop; ends by finish() or an error. */
static void
run(void)
{
	static uint32 wait_event = 0;
	int64		retry_us = RETRY_MIN_US;
	TimestampTz look_at = 0;
	TimestampTz idle_since = GetCurrentTimestamp();
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "coord resolver",
												  ALLOCSET_DEFAULT_SIZES);

	for (;;)
	{
		TimestampTz now = GetCurrentTimestamp();
		TimestampTz next;
		bool		wanted;

		MemoryContextSwitchTo(context);
		MemoryContextReset(context);
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
		if (!guc_enabled || doorbell_database(MyDatabaseId, true)->wanted_by != 0)
			finish(0);
		LWLockAcquire(&twophase_shared->lock, LW_EXCLUSIVE);
		wanted = mine->wanted || (mine->next_at != 0 && mine->next_at <= now);
		mine->wanted = false;
		if (wanted)
			mine->next_at = 0;
		next = mine->next_at;
		LWLockRelease(&twophase_shared->lock);
		if (look_at != 0 && look_at > now + LOOK_LATER_US)
			look_at = now;		/* the clock was set back */
		if (mine->late_until > now + LATE_MAX_US)
			mine->late_until = now + LATE_MAX_US;
		if (wanted)
			retry_us = RETRY_MIN_US;	/* something new */
		if (wanted || now < mine->covered_from || mine->covered_until < now)
			answer_requests();
		if (wanted || (look_at != 0 && look_at <= now))
		{
			bool		any = any_decision();
			bool		all;

			pgstat_report_activity(STATE_RUNNING, "coord: resolving prepared transactions");
			all = look(context);
			look_at_applications(context);
			/* Also while a participant is away: may_drop() keeps what it needs. */
			partition_drop_expired(&decisions);
			if (all && GetCurrentTimestamp() >= mine->late_until)
			{
				retry_us = RETRY_MIN_US;
				look_at = any ? now + LOOK_LATER_US : 0;
			}
			else
			{
				look_at = GetCurrentTimestamp() + retry_us;
				retry_us = Min(retry_us * 2, RETRY_MAX_US);
			}
			pgstat_report_activity(STATE_IDLE, NULL);
			pgstat_report_stat(true);
			idle_since = GetCurrentTimestamp();
			continue;
		}
		if (now - idle_since > STAY_US || now < idle_since)
		{
			TimestampTz at = Min(look_at == 0 ? DT_NOEND : look_at, next == 0 ? DT_NOEND : next);

			if (at > now + STAY_US)
				finish(at);
			idle_since = now;
		}
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 (long) Max(1, (Min(Min(idle_since + STAY_US, look_at == 0 ? PG_INT64_MAX : look_at),
											 next == 0 ? PG_INT64_MAX : next) - now) / 1000 + 1),
						 coord_wait_event(&wait_event, "CoordResolverMain"));
		ResetLatch(MyLatch);
	}
}

void
coord_resolver_main(Datum arg)
{
	Oid			database;
	Oid			role;

	pqsignal(SIGTERM, die);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	memcpy(&database, MyBgworkerEntry->bgw_extra, sizeof(Oid));
	memcpy(&role, MyBgworkerEntry->bgw_extra + sizeof(Oid), sizeof(Oid));

	/* First of all: whoever waits for it to come, or to be gone, must see it. */
	doorbell_attach();
	mine = twophase_database_by_oid(database);
	if (mine == NULL)
		return;
	LWLockAcquire(&twophase_shared->lock, LW_EXCLUSIVE);
	mine->starting = false;
	if (mine->resolver_pid != 0)
	{
		LWLockRelease(&twophase_shared->lock);
		return;
	}
	mine->resolver_pid = MyProcPid;
	mine->resolver_procno = coord_my_proc_number();
	mine->wanted = true;
	LWLockRelease(&twophase_shared->lock);
	before_shmem_exit(resolver_exit, (Datum) 0);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(database, role, COORD_WORKER_CONNECT_FLAGS);
	identity_session_is_worker();
	SetConfigOption("search_path", "pg_catalog, pg_temp", PGC_USERSET, PGC_S_OVERRIDE);
	SetConfigOption("default_transaction_isolation", "read committed", PGC_USERSET, PGC_S_OVERRIDE);
	SetConfigOption("default_transaction_read_only", "off", PGC_USERSET, PGC_S_OVERRIDE);
	doorbell_attach_queue();
	run();
}
