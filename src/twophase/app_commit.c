/*-------------------------------------------------------------------------
 *
 * app_commit.c
 *	  CALL coord.twophase_commit(): the session that asks, decides and helps.
 *
 * Several transactions, none of which holds anything while it waits:
 *
 * 1. The participants' sagas are started, and the row says "preparing".
 * 2. Votes are waited for; what workers do not do, the session does itself, as far as
 *	  it may.  A no, or the end of the time, and the decision is to abort.
 * 3. When all have said yes: servers are sent their SQL and prepared, as those of an
 *	  ordinary transaction are (commit.c), and the same transaction decides.  Servers
 *	  come last, since it is they who hold locks while they wait.  Under an id of their
 *	  own, which is in the row: the transaction's may be much older than the decisions
 *	  by which the resolver knows what is finished at a server.
 * 4. Phase two: servers as ever, the others by their sagas; waited for at most
 *	  coord.twophase_phase2_timeout.
 *
 * A session that dies at any point, or a second one that does the same, changes
 * nothing of that: see twophase_app.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/condition_variable.h"
#include "tcop/pquery.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "base/access.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/commit_level.h"
#include "base/compat.h"
#include "base/debug_point.h"
#include "base/guc.h"
#include "base/installation.h"
#include "base/query.h"
#include "saga/saga.h"
#include "twophase/branch.h"
#include "twophase/commit.h"
#include "twophase/remote_args.h"
#include "twophase/twophase_app.h"
#include "twophase/twophase_shared.h"

/* A participant that nobody tells of is looked at this often. */
#define LOOK_MS 1000

PG_FUNCTION_INFO_V1(coord_twophase_commit);

/* What the session knows of the transaction that it commits. */
typedef struct Committing
{
	App			app;
	AppParticipant *list;
	int			count;
	int64	   *sagas;			/* of those that have one */
	int			nsagas;
	int			nservers;
} Committing;

/* End the open transaction, and go on in a new one. */
static void
next_transaction(bool commit)
{
	MemoryContext context = CurrentMemoryContext;

	if (SPI_connect_ext(SPI_OPT_NONATOMIC) != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (commit)
		SPI_commit();
	else
		SPI_rollback();
	SPI_finish();
	MemoryContextSwitchTo(context);
}

static void
commit(void)
{
	next_transaction(true);
	EnsurePortalSnapshotExists();
}

static bool
is_decided(const App *app)
{
	return app->status == APP_COMMITTED || app->status == APP_ABORTED;
}

/* Read the row anew, and lock it; 40001 when it is gone. */
static void
lock_row(Committing *committing)
{
	if (!app_read(committing->app.gtid, APP_LOCK_UPDATE, &committing->app))
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("transaction " INT64_FORMAT " was forgotten meanwhile",
						committing->app.gtid)));
}

/* Decide to abort, unless it is decided. */
static void
decide_to_abort(Committing *committing, AppEvent event, const char *reason)
{
	lock_row(committing);
	if (!is_decided(&committing->app))
		app_abort(&committing->app, event, GetUserId(), reason);
	commit();
}

/* ----------------------------------------------------------------
 *		1. Asking
 * ----------------------------------------------------------------
 */

static void
read_participants(Committing *committing)
{
	committing->list = app_participants(committing->app.gtid, &committing->count);
	committing->sagas = palloc(sizeof(int64) * (committing->count + 1));
	committing->nsagas = committing->nservers = 0;
	for (int i = 0; i < committing->count; i++)
	{
		if (committing->list[i].definition == 0)
			committing->nservers++;
		else
			committing->sagas[committing->nsagas++] = committing->list[i].saga;
	}
}

/* Start the sagas of all participants that have one. */
static void
ask(Committing *committing)
{
	static Statement note = {
		"UPDATE coord_internal.twophase_app_participant SET saga_id = $3"
		" WHERE gtid = $1 AND participant = $2",
		3, {INT8OID, TEXTOID, INT8OID}
	};
	App		   *app = &committing->app;

	for (int i = 0; i < committing->count; i++)
	{
		AppParticipant *participant = &committing->list[i];
		QueryScope	scope;
		Datum		values[3];

		if (participant->definition == 0)
			continue;
		participant->saga = saga_participant_start(participant->definition, participant->owner,
												   app->gtid, participant->name,
												   participant->payload,
												   app->has_correlation ? &app->correlation_id : NULL);
		query_begin(&scope);
		values[0] = Int64GetDatum(app->gtid);
		values[1] = CStringGetTextDatum(participant->name);
		values[2] = Int64GetDatum(participant->saga);
		query_run(&note, values, NULL, 0);
		query_end(&scope);
	}
	app_set_status(app, APP_EVENT_PREPARE, NULL, 0);
}

/* The row says that participants are asked, or it is decided. */
static void
begin_to_prepare(Committing *committing)
{
	App		   *app = &committing->app;

	lock_row(committing);
	read_participants(committing);
	if (!is_decided(app) && app->deadline <= clock_now())
		app_abort(app, APP_EVENT_EXPIRE, GetUserId(), "its time is up");
	else if (app->status == APP_OPEN)
	{
		if (committing->nservers > 0)
			branch_be_ready();
		ask(committing);
		read_participants(committing);
	}
	commit();
	DEBUG_POINT("twophase_app_asked");
}

/* ----------------------------------------------------------------
 *		2. Votes
 * ----------------------------------------------------------------
 */

/*
 * What all votes together say; of a no "reason" says whose it is and why.
 */
static SagaVote
count_votes(const Committing *committing, char **reason)
{
	SagaVote   *votes = palloc(sizeof(SagaVote) * (committing->nsagas + 1));
	char	  **reasons = palloc0(sizeof(char *) * (committing->nsagas + 1));
	SagaVote	result = SAGA_VOTE_YES;

	saga_participant_votes(committing->sagas, committing->nsagas, votes, reasons);
	for (int i = 0, n = 0; i < committing->count; i++)
	{
		const AppParticipant *participant = &committing->list[i];

		if (participant->definition == 0)
			continue;
		if (votes[n] == SAGA_VOTE_NO)
		{
			*reason = psprintf("participant \"%s\" said no: %s", participant->name,
							   reasons[n] ? reasons[n] : "it is finished");
			return SAGA_VOTE_NO;
		}
		if (votes[n] == SAGA_VOTE_NONE)
			result = SAGA_VOTE_NONE;
		n++;
	}
	return result;
}

/* Sleep until somebody tells of this transaction, or "until"; without a snapshot. */
static void
sleep_for_news(ConditionVariable *waiters, TimestampTz until)
{
	static uint32 wait_event = 0;
	int64		left = until - clock_now();

	next_transaction(true);
	if (left > 0)
		(void) ConditionVariableTimedSleep(waiters, Min(left / 1000 + 1, LOOK_MS),
										   coord_wait_event(&wait_event, "CoordTwophaseVotes"));
	EnsurePortalSnapshotExists();
}

/*
 * Until all have said yes, or it is decided otherwise.  False: nothing is going to
 * happen, as the clock is set (in tests) and others have to act.
 */
static bool
gather(Committing *committing)
{
	App		   *app = &committing->app;
	ConditionVariable *waiters = doorbell_waiters(app->gtid);
	bool		goes_on = true;

	/* The time by the system's clock, which calls are stopped by. */
	TimestampTz until = GetCurrentTimestamp() + (app->deadline - clock_now());

	while (goes_on)
	{
		char	   *reason = NULL;
		SagaVote	vote;

		ConditionVariablePrepareToSleep(waiters);
		CHECK_FOR_INTERRUPTS();
		if (!app_read(app->gtid, APP_LOCK_NONE, app) || is_decided(app))
			break;
		vote = count_votes(committing, &reason);
		if (vote == SAGA_VOTE_YES)
			break;
		if (vote == SAGA_VOTE_NO)
			decide_to_abort(committing, APP_EVENT_REFUSE, reason);
		else if (app->deadline <= clock_now())
			decide_to_abort(committing, APP_EVENT_EXPIRE, "its time is up: not all participants have said yes");
		else if (saga_drive(committing->sagas, committing->nsagas, until))
			continue;
		else if (clock_is_set())
			goes_on = false;
		else
			sleep_for_news(waiters, app->deadline);
	}
	ConditionVariableCancelSleep();
	return goes_on;
}

/* ----------------------------------------------------------------
 *		3. Servers, and the decision
 * ----------------------------------------------------------------
 */

/* A server's SQL, as the role that enlisted it. */
static void
run_at_server(const AppParticipant *participant, int64 until)
{
	Oid			user;
	int			context;
	Branch	   *branch;
	const char **values = NULL;
	int			nvalues = 0;

	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(participant->owner, context | SECURITY_LOCAL_USERID_CHANGE);
	if (participant->payload != NULL)
		values = remote_args(participant->payload, &nvalues);
	branch = branch_enlist(participant->server, until);
	(void) branch_execute(branch, participant->sql, nvalues, values, until, false, false);
	branch->wrote = true;
	SetUserIdAndSecContext(user, context);
}

/* The same for all, and their votes. */
static void
prepare_at_servers(const Committing *committing)
{
	int64		until = remote_now() + Max(committing->app.deadline - clock_now(), USECS_PER_SEC);

	(void) twophase_take_gtid();
	for (int i = 0; i < committing->count; i++)
	{
		if (committing->list[i].definition == 0)
			run_at_server(&committing->list[i], until);
	}
	twophase_begin_commit();
	for (int i = 0; i < nbranches; i++)
		remote_batch(branches[i].remote);
	twophase_send_prepares();
	twophase_gather_votes();
}

/*
 * The same; NULL, or why one of them said no.  The open transaction is good for
 * nothing but being rolled back then.
 */
static char *
servers_say_no(const Committing *committing)
{
	ResourceOwner owner = CurrentResourceOwner;
	MemoryContext context = CurrentMemoryContext;
	ErrorData  *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		prepare_at_servers(committing);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		if (error->sqlerrcode == ERRCODE_QUERY_CANCELED)
			ReThrowError(error);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return error ? error->message : NULL;
}

/* All have said yes; the row is decided when it returns. */
static void
decide(Committing *committing)
{
	App		   *app = &committing->app;
	int64		decision = 0;

	DEBUG_POINT("twophase_app_voted");
	if (committing->nservers > 0)
	{
		char	   *reason = servers_say_no(committing);

		if (reason != NULL)
		{
			next_transaction(false);
			EnsurePortalSnapshotExists();
			decide_to_abort(committing, APP_EVENT_REFUSE, reason);
			return;
		}
		decision = branch_gtid;
	}
	DEBUG_POINT("twophase_app_prepared");
	lock_row(committing);
	if (app->status != APP_PREPARING)
	{
		/* Somebody else was first; what was prepared here is rolled back. */
		next_transaction(false);
		EnsurePortalSnapshotExists();
		return;
	}
	app_set_status(app, APP_EVENT_COMMIT, NULL, decision);
	for (int i = 0; i < committing->nsagas; i++)
		saga_participant_decide(committing->sagas[i], true, GetUserId(), NULL);
	if (committing->nservers > 0)
		twophase_decide();
	else
	{
		commit_durably();
		ForceSyncCommit();
	}
	DEBUG_POINT("twophase_app_deciding");
	next_transaction(true);
	DEBUG_POINT("twophase_app_decided");
	if (committing->nservers > 0)
		twophase_phase_two(decision, true);
	EnsurePortalSnapshotExists();
}

/* ----------------------------------------------------------------
 *		4. The rest
 * ----------------------------------------------------------------
 */

/* Say of whom it is not known yet that they are through. */
static void
tell_unfinished(const Committing *committing, const int64 *sagas, int count)
{
	StringInfoData names;

	initStringInfo(&names);
	for (int i = 0; i < committing->count; i++)
	{
		for (int j = 0; j < count; j++)
		{
			if (committing->list[i].saga == sagas[j])
				appendStringInfo(&names, "%s\"%s\"", names.len > 0 ? ", " : "",
								 committing->list[i].name);
		}
	}
	ereport(WARNING,
			(errmsg("transaction " INT64_FORMAT " is committed; it is not finished yet by %s",
					committing->app.gtid, names.data),
			 errhint("It is told until it is; see coord.twophase_participants.")));
}

/* Lend a hand, and wait a while for who committed. */
static void
finish(Committing *committing)
{
	App		   *app = &committing->app;
	ConditionVariable *waiters = doorbell_waiters(app->gtid);
	TimestampTz until = clock_now() + guc_twophase_phase2_timeout * INT64CONST(1000);
	int64	   *sagas = palloc(sizeof(int64) * (committing->nsagas + 1));

	for (;;)
	{
		int			left = committing->nsagas;

		ConditionVariablePrepareToSleep(waiters);
		CHECK_FOR_INTERRUPTS();
		memcpy(sagas, committing->sagas, sizeof(int64) * left);
		left = saga_participant_unfinished(sagas, left);
		if (left == 0)
			break;
		if (saga_drive(sagas, left, 0))
			continue;
		if (app->status == APP_ABORTED)
			break;
		if (clock_is_set() || clock_now() >= until)
		{
			tell_unfinished(committing, sagas, left);
			break;
		}
		sleep_for_news(waiters, until);
	}
	ConditionVariableCancelSleep();
}

/* CALL coord.twophase_commit(gtid, outcome) */
Datum
coord_twophase_commit(PG_FUNCTION_ARGS)
{
	Committing	committing = {0};
	TupleDesc	desc;
	Datum		value;
	bool		isnull = false;

	check_nonatomic(fcinfo, "coord.twophase_commit");
	check_required(fcinfo, 0, "gtid");
	installation_check();
	check_not_in_recovery("coord.twophase_commit()");
	app_read_mine(fcinfo, APP_LOCK_NONE, &committing.app);
	if (installation_is_copy())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this database is a copy and does not act"),
				 errhint("SELECT coord.resume(); if it shall.")));
	doorbell_attach_queue();
	if (!is_decided(&committing.app))
	{
		begin_to_prepare(&committing);
		if (!is_decided(&committing.app) && gather(&committing) &&
			!is_decided(&committing.app))
			decide(&committing);
		if (is_decided(&committing.app))
			finish(&committing);
	}

	/* As it is now, whoever decided. */
	value = CStringGetTextDatum(twophase_app_outcome(committing.app.gtid));
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "procedure must return a row");
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), &value, &isnull));
}
