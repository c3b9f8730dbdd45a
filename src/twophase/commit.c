/*-------------------------------------------------------------------------
 *
 * commit.c
 *	  Atomic commit: votes before the local commit, the decision in it, COMMIT
 *	  PREPARED behind it.
 *
 * The commit point is the local transaction's own commit record: a decision row
 * that is written after the votes and commits with it.  Only commits are recorded;
 * what has no row was not committed (presumed abort).  doc/twophase.md has the
 * protocol step by step and the table of crashes; the numbers here are the page's.
 *
 * 1. A vote is yes only for PREPARE TRANSACTION answered by that tag without any
 *	  WARNING: a failed block answers ROLLBACK, a cancelled wait for a standby shows
 *	  as a WARNING only.
 * 2. The decision is on disk, here and where synchronous standbys are required there
 *	  too, before the first COMMIT PREPARED goes out: the commit is forced to be
 *	  synchronous, and should its wait for a standby have been cancelled, phase two is
 *	  left to the resolver, which waits for the standby.
 * 3. In the callback of COMMIT an error would be a PANIC.  Nothing there allocates
 *	  memory of the server's, looks at a catalog or raises an error; it waits for a
 *	  bounded time, and what is not acknowledged is the resolver's.
 * 4. The session is in the list of active ones from before the first PREPARE until its
 *	  transaction has ended visibly; see twophase_shared.c for why that is enough.
 * 5. Callbacks run last registered first.  coord's is registered anew at the first
 *	  participant of each transaction, so it runs before those that were there, in
 *	  whatever order libraries were loaded.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "commands/async.h"
#include "miscadmin.h"
#include "replication/syncrep.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"

#include "base/clock.h"
#include "base/commit_level.h"
#include "base/compat.h"
#include "base/debug_point.h"
#include "base/errors.h"
#include "base/guc.h"
#include "base/query.h"
#include "lock/lock.h"
#include "twophase/branch.h"
#include "twophase/commit.h"
#include "twophase/twophase_shared.h"

/* How long rolling back may take; what takes longer is the resolver's. */
#define ROLL_BACK_US (3 * USECS_PER_SEC)

/* The global transaction of the open one; 0: none yet. */
int64		branch_gtid = 0;

/* The decision row is inserted. */
static bool decided = false;

/* Branches have their names: no other may come, and no statement. */
static bool closing = false;

/* Phase two is done by who commits, and not by the callback. */
static bool own_phase_two = false;

/* It is due: the transaction that decided has committed. */
static bool phase_two_due = false;

/* Participants were told to commit, and their answers are not waited for. */
static bool only_told = false;

/* The resolver is to be woken. */
static bool left_over = false;

static bool registered = false;

static void xact_callback(XactEvent event, void *arg);
static void subxact_callback(SubXactEvent event, SubTransactionId mine,
							 SubTransactionId parent, void *arg);

/* A participant comes into the open transaction: see 5. above. */
void
twophase_enlisted(void)
{
	if (nbranches > 0 || branch_gtid != 0)
		return;
	commit_level_attach();
	if (registered)
	{
		UnregisterXactCallback(xact_callback, NULL);
		UnregisterSubXactCallback(subxact_callback, NULL);
	}
	registered = false;
	RegisterXactCallback(xact_callback, NULL);
	RegisterSubXactCallback(subxact_callback, NULL);
	registered = true;
}

/*
 * The open transaction's global id; from then on its decision is recorded, and the
 * session is active; see 4. above.  It is that already while the id is taken, so that
 * whoever sees a higher id sees this one, or that there is one.
 */
int64
twophase_take_gtid(void)
{
	TwophaseSession *session = twophase_session();

	if (branch_gtid == 0)
	{
		twophase_enlisted();
		session->database = MyDatabaseId;
		session->pid = MyProcPid;
		session->role = GetUserId();
		session->since = GetCurrentTimestamp();
		pg_atomic_write_u64(&session->gtid, 1);
		pg_memory_barrier();
		PG_TRY();
		{
			branch_gtid = lock_token_next();
		}
		PG_CATCH();
		{
			pg_atomic_write_u64(&session->gtid, 0);
			PG_RE_THROW();
		}
		PG_END_TRY();
		pg_atomic_write_u64(&session->gtid, (uint64) branch_gtid);
		pg_memory_barrier();
	}
	session->participants = nbranches;
	return branch_gtid;
}

static void
leave_active(void)
{
	pg_memory_barrier();
	pg_atomic_write_u64(&twophase_session()->gtid, 0);
}

/* Name what the writers will prepare. */
static void
name_branches(void)
{
	TwophaseDatabase *database = twophase_database();
	Branch	   *writers[COORD_MAX_PARTICIPANTS];
	Gid			gid;
	int			n = 0;

	for (int i = 0; i < nbranches; i++)
	{
		if (branches[i].wrote)
			writers[n++] = &branches[i];
	}
	gid.cluster = database->cluster;
	gid.database = MyDatabaseId;
	gid.incarnation = database->incarnation;
	gid.gtid = branch_gtid;
	gid.count = n;
	for (int i = 0; i < n; i++)
	{
		gid.number = i + 1;
		gid.next_server = writers[(i + 1) % n]->remote->serverid;
		gid.next_xid = writers[(i + 1) % n]->xid;
		gid_write(writers[i]->gid, &gid);
	}
}

/*
 * 55000 when the transaction is being committed: what a trigger or a branch's own code
 * asks of a participant now, nobody would prepare.
 */
void
twophase_check_open(void)
{
	if (closing || phase_two_due)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("participants cannot be used any more"),
				 errdetail("This transaction is being committed, and they have been told to prepare."),
				 errhint("Make the statement a branch of its own, or use coord.remote_exec() in an ordinary transaction.")));
}

/* The connections on which something is under way. */
static int
collect(Remote **list)
{
	int			n = 0;

	for (int i = 0; i < nbranches; i++)
	{
		if (remote_is_under_way(branches[i].remote))
			list[n++] = branches[i].remote;
	}
	return n;
}

/* Send a command that ends the branch's transaction, or goes on from its end. */
static void
send_end(Branch *branch, const char *format, BranchState state)
{
	char		sql[GID_SIZE + 64];

	remote_batch(branch->remote);
	snprintf(sql, sizeof(sql), format, branch->gid);
	branch->state = state;
	(void) remote_add(branch->remote, sql, 0, NULL, false);
	(void) remote_go(branch->remote);
}

/*
 * PREPARE TRANSACTION, behind what is in the batch already; as the mapping's user,
 * whatever role the session took.
 */
static void
send_prepare(Branch *branch)
{
	char		sql[GID_SIZE + 64];

	snprintf(sql, sizeof(sql), "PREPARE TRANSACTION '%s'", branch->gid);
	branch->state = BRANCH_PREPARING;
	(void) remote_add(branch->remote, "SET SESSION AUTHORIZATION DEFAULT", 0, NULL, false);
	(void) remote_add(branch->remote, sql, 0, NULL, false);
	(void) remote_go(branch->remote);
}

/* COMMIT of a participant that only read, or of the only one that wrote. */
static void
send_commit(Branch *branch)
{
	remote_batch(branch->remote);
	branch->state = BRANCH_FINISHING;
	(void) remote_add(branch->remote, "COMMIT", 0, NULL, false);
	(void) remote_go(branch->remote);
}

/*
 * What the participant said to PREPARE or COMMIT.  Raises ZC010 when it is no; the
 * transaction is then rolled back everywhere.
 */
static void
check_vote(Branch *branch)
{
	Remote	   *remote = branch->remote;
	bool		prepared = branch->state == BRANCH_PREPARING;
	int			at = remote->ncommands - 1;
	const char *tag = prepared ? "PREPARE TRANSACTION" : "COMMIT";

	if (remote_succeeded(remote, at, tag))
	{
		branch->state = prepared ? BRANCH_PREPARED : BRANCH_ENDED;
		remote->prepared = prepared;
		return;
	}
	if (remote->state != REMOTE_IDLE || remote_error(remote) != NULL)
	{
		/* An error is an answer: it is not prepared. */
		if (remote->state == REMOTE_IDLE)
			branch->state = BRANCH_ENDED;
		remote_raise(remote, remote->state == REMOTE_BUSY ? "no vote in time" :
					 "the connection was lost");
	}
	if (!prepared && remote->results[at] != NULL &&
		strcmp(PQcmdStatus(remote->results[at]), tag) == 0)
	{
		/* It is committed, whatever it warns of. */
		branch->state = BRANCH_ENDED;
		ereport(WARNING,
				(errmsg("participant \"%s\": %s", remote->server, remote->warning)));
		return;
	}
	if (remote->warned && prepared && remote->results[at] != NULL &&
		strcmp(PQcmdStatus(remote->results[at]), tag) == 0)
		branch->state = BRANCH_PREPARED;	/* it is there, and is rolled back */
	else
		branch->state = BRANCH_ENDED;
	ereport(ERROR,
			(errcode(ERRCODE_COORD_PARTICIPANT_FAILED),
			 errmsg("participant \"%s\" did not vote for the commit", remote->server),
			 remote->warned ? errdetail("It answered with a warning: %s", remote->warning) :
			 errdetail("Its transaction had failed.")));
}

/* Wait for votes, and look at them. */
static void
gather_votes(void)
{
	Remote	   *list[COORD_MAX_PARTICIPANTS];
	int			n = collect(list);

	(void) remote_wait(list, n, remote_now() + guc_twophase_prepare_timeout * INT64CONST(1000),
					   true);

	/* First all that voted yes: what is rolled back must be known of each. */
	for (int i = 0; i < nbranches; i++)
	{
		Branch	   *branch = &branches[i];

		if (branch->state == BRANCH_PREPARING &&
			remote_succeeded(branch->remote, branch->remote->ncommands - 1, "PREPARE TRANSACTION"))
		{
			branch->state = BRANCH_PREPARED;
			branch->remote->prepared = true;
		}
	}
	for (int i = 0; i < nbranches; i++)
	{
		if (branches[i].state == BRANCH_PREPARING || branches[i].state == BRANCH_FINISHING)
			check_vote(&branches[i]);
	}
}

/* The one row that says that the transaction committed. */
static void
insert_decision(void)
{
	static Statement insert = {
		"INSERT INTO coord_internal.twophase_decision (gtid, at, incarnation, role,"
		" correlation_id, servers, mappings, gids)"
		" VALUES ($1, $2, $3, $4, nullif($5, '')::uuid, $6, $7, $8)",
		8, {INT8OID, TIMESTAMPTZOID, INT4OID, OIDOID, TEXTOID, OIDARRAYOID, OIDARRAYOID,
		TEXTARRAYOID}
	};
	Datum		servers[COORD_MAX_PARTICIPANTS];
	Datum		mappings[COORD_MAX_PARTICIPANTS];
	Datum		gids[COORD_MAX_PARTICIPANTS];
	Datum		values[8];
	Oid			user = GetUserId();
	QueryScope	scope;
	int			n = 0;

	query_begin(&scope);
	for (int i = 0; i < nbranches; i++)
	{
		if (branches[i].state != BRANCH_PREPARED)
			continue;
		servers[n] = ObjectIdGetDatum(branches[i].remote->serverid);
		mappings[n] = ObjectIdGetDatum(branches[i].remote->mapping);
		gids[n++] = CStringGetTextDatum(branches[i].gid);
	}
	values[0] = Int64GetDatum(branch_gtid);
	values[1] = TimestampTzGetDatum(GetCurrentTimestamp());
	values[2] = Int32GetDatum(twophase_database()->incarnation);
	values[3] = ObjectIdGetDatum(user);
	values[4] = CStringGetTextDatum(guc_correlation_id ? guc_correlation_id : "");
	values[5] = PointerGetDatum(construct_array(servers, n, OIDOID, 4, true, TYPALIGN_INT));
	values[6] = PointerGetDatum(construct_array(mappings, n, OIDOID, 4, true, TYPALIGN_INT));
	values[7] = PointerGetDatum(construct_array(gids, n, TEXTOID, -1, false, TYPALIGN_INT));
	query_run(&insert, values, NULL, 0);
	query_end(&scope);
	decided = true;
}

/* Before the first PREPARE: the commit will be durable, and branches have names. */
void
twophase_begin_commit(void)
{
	commit_durably();
	ForceSyncCommit();
	(void) twophase_take_gtid();
	name_branches();
	closing = true;
	DEBUG_POINT("twophase_before_prepare");
}

/* PREPARE of all branches, behind what is in their batches. */
void
twophase_send_prepares(void)
{
	for (int i = 0; i < nbranches; i++)
		send_prepare(&branches[i]);
	DEBUG_POINT("twophase_preparing");
}

/*
 * Wait for the votes; ZC010 for a no.
 */
void
twophase_gather_votes(void)
{
	gather_votes();
	DEBUG_POINT("twophase_prepared");
}

/* The local transaction's commit will be the decision, and phase two the caller's. */
void
twophase_decide(void)
{
	insert_decision();
	own_phase_two = true;
	DEBUG_POINT("twophase_decided");
}

/*
 * Everything before the local commit record: votes and decision.  Raises ZC010 for
 * a no, ZC009 when the only participant that wrote was lost while it committed.
 */
static void
pre_commit(void)
{
	int			writers = 0;
	bool		wrote_here = TransactionIdIsValid(GetTopTransactionIdIfAny()) || branch_gtid != 0;
	Branch	   *single = NULL;

	for (int i = 0; i < nbranches; i++)
	{
		if (branches[i].poisoned)
			ereport(ERROR,
					(errcode(ERRCODE_COORD_PARTICIPANT_FAILED),
					 errmsg("participant \"%s\" cannot commit", branches[i].remote->server),
					 errdetail("Its connection was lost, or it could not go back to a savepoint.")));
		if (branches[i].wrote)
		{
			writers++;
			single = &branches[i];
		}
	}
	if (writers > 1 || (writers == 1 && (wrote_here || IsolationIsSerializable())))
	{
		twophase_begin_commit();
		single = NULL;
	}
	for (int i = 0; i < nbranches; i++)
	{
		if (branches[i].level == 0)
			branches[i].state = BRANCH_ENDED;	/* it never got to begin */
		else if (!branches[i].wrote)
			send_commit(&branches[i]);
		else if (&branches[i] != single)
		{
			remote_batch(branches[i].remote);
			send_prepare(&branches[i]);
		}
	}
	DEBUG_POINT("twophase_preparing");
	gather_votes();
	if (single != NULL && writers == 1)
	{
		Remote	   *remote = single->remote;

		send_commit(single);
		(void) remote_wait(&remote, 1, remote_now() + guc_twophase_prepare_timeout * INT64CONST(1000),
						   true);
		if (remote->state != REMOTE_IDLE)
			ereport(ERROR,
					(errcode(ERRCODE_COORD_IN_DOUBT),
					 errmsg("participant \"%s\" was lost while it committed", remote->server),
					 errdetail("It was the only one that wrote, so it was told to COMMIT at once: whether it did is not known here."),
					 errhint("Look there. A transaction that calls coord.twophase_current() is always committed in two phases.")));
		check_vote(single);
		return;
	}
	DEBUG_POINT("twophase_prepared");
	if (branch_gtid != 0)
	{
		commit_durably();
		ForceSyncCommit();
		insert_decision();
	}
	DEBUG_POINT("twophase_decided");
}

/*
 * Is the commit record where it has to be, before participants may hear of it?
 * What the session waited for may have been cancelled; see 2. above.
 */
bool
twophase_is_replicated(XLogRecPtr lsn)
{
	bool		result;

	if (max_wal_senders == 0 || SyncRepStandbyNames == NULL || SyncRepStandbyNames[0] == '\0')
		return true;
	LWLockAcquire(SyncRepLock, LW_SHARED);
	result = WalSndCtl->lsn[SYNC_REP_WAIT_FLUSH] >= lsn;
	LWLockRelease(SyncRepLock);
	return result;
}

/*
 * Tell all that have prepared to commit, and wait for at most "us".  Returns how
 * many have not acknowledged.  Raises nothing unless "interruptible".
 */
static int
phase_two(int64 us, bool interruptible)
{
	Remote	   *list[COORD_MAX_PARTICIPANTS];
	int			left = 0;

	for (int i = 0; i < nbranches; i++)
	{
		if (branches[i].state != BRANCH_PREPARED)
			continue;
		send_end(&branches[i], "COMMIT PREPARED '%s'", BRANCH_PREPARED);
		DEBUG_POINT("twophase_telling");
	}
	DEBUG_POINT("twophase_told");
	(void) remote_wait(list, collect(list), remote_now() + us, interruptible);
	DEBUG_POINT("twophase_acknowledged");
	for (int i = 0; i < nbranches; i++)
	{
		Branch	   *branch = &branches[i];

		if (branch->state != BRANCH_PREPARED)
			continue;
		if (remote_succeeded(branch->remote, 0, "COMMIT PREPARED"))
			branch->state = BRANCH_ENDED;
		else
			left++;
	}
	return left;
}

/* Leave the rest to the resolver, and say so.  Raises nothing. */
static void
hand_over(const char *why)
{
	char		names[256] = "";
	int			length = 0;

	for (int i = 0; i < nbranches && length < sizeof(names) - NAMEDATALEN - 4; i++)
	{
		if (branches[i].state == BRANCH_PREPARED)
			length += snprintf(names + length, sizeof(names) - length, "%s\"%s\"",
							   length > 0 ? ", " : "", branches[i].remote->server);
	}
	if (length == 0)
		return;					/* nobody has to acknowledge it */
	twophase_not_acknowledged(twophase_database(), branch_gtid);
	left_over = true;
	ereport(WARNING,
			(errmsg("transaction " INT64_FORMAT " is committed; it is not acknowledged yet by %s",
					branch_gtid, names),
			 errdetail_internal("%s", why),
			 errhint("coord's resolver goes on until it is; see coord.twophase_pending.")));
}

/*
 * The transaction is over: forget it.  The resolver is woken when the session is not
 * active any more, or it would leave it alone.  Raises nothing.
 */
static void
forget(void)
{
	bool		wake = left_over;
	bool		told = only_told;

	if (nbranches > 0 || branch_gtid != 0)
		leave_active();
	branch_forget_all(told);
	branch_gtid = 0;
	decided = closing = own_phase_two = phase_two_due = left_over = only_told = false;
	if (wake)
		twophase_want_resolver(twophase_database(), 0);
}

/* After the commit record; see 3. above. */
static void
committed(void)
{
	MemoryContext context = CurrentMemoryContext;
	uint32		holdoff = InterruptHoldoffCount;

	if (own_phase_two)
	{
		phase_two_due = true;
		return;
	}
	PG_TRY();
	{
		if (decided && nbranches > 0)
		{
			DEBUG_POINT("twophase_committed");
			if (!twophase_is_replicated(XactLastCommitEnd))
				hand_over("The wait for a synchronous standby was cancelled.");
			else if (phase_two(guc_twophase_phase2_timeout * INT64CONST(1000), false) > 0)
				hand_over("No answer within coord.twophase_phase2_timeout, or not the expected one.");
		}
	}
	PG_CATCH();
	{
		/* Nothing above raises errors; the resolver finds what is left. */
		MemoryContextSwitchTo(context);
		FlushErrorState();
		InterruptHoldoffCount = holdoff;
		twophase_not_acknowledged(twophase_database(), branch_gtid);
		left_over = true;
	}
	PG_END_TRY();
	forget();
}

/*
 * After twophase_decide() and the commit, in a new transaction: tell the participants.
 * Without "wait" they are told and not listened to; what they answer is read when the
 * connection is used next, and if it is not what it should be, or it never is, the
 * resolver's next look finds it.
 */
void
twophase_phase_two(int64 gtid, bool wait)
{
	const char *why = NULL;
	int			left;

	Assert(phase_two_due && branch_gtid == gtid);
	DEBUG_POINT("twophase_committed");
	if (!twophase_is_replicated(XactLastCommitEnd))
		why = "The wait for a synchronous standby was cancelled.";
	else
	{
		left = phase_two(wait ? guc_twophase_phase2_timeout * INT64CONST(1000) : 0, false);
		if (left > 0 && wait)
			why = "No answer within coord.twophase_phase2_timeout, or not the expected one.";
		else if (left > 0)
		{
			twophase_told(twophase_database(), branch_gtid);
			only_told = true;
		}
	}
	if (why != NULL)
		hand_over(why);
	forget();
}

/*
 * The transaction was rolled back: everybody rolls back.  Raises nothing and waits
 * for a bounded time.
 */
static void
aborted(void)
{
	Remote	   *list[COORD_MAX_PARTICIPANTS];
	int64		until = remote_now() + ROLL_BACK_US;

	/* What is being asked is cancelled; a vote that is on its way is waited for. */
	for (int i = 0; i < nbranches; i++)
	{
		if (branches[i].remote->state == REMOTE_BUSY)
			remote_cancel(branches[i].remote, until);
	}
	(void) remote_wait(list, collect(list), until, false);
	for (int i = 0; i < nbranches; i++)
	{
		Branch	   *branch = &branches[i];
		Remote	   *remote = branch->remote;

		if (branch->state == BRANCH_PREPARING && remote->state == REMOTE_IDLE)
		{
			PGresult   *result = remote->results[remote->ncommands - 1];

			if (result != NULL && strcmp(PQcmdStatus(result), "PREPARE TRANSACTION") == 0)
				branch->state = BRANCH_PREPARED;
			else
				branch->state = BRANCH_ENDED;
		}
		if (remote->state != REMOTE_IDLE)
		{
			/* Also when it never comes: PREPARE may still be carried out over there. */
			if (branch->state == BRANCH_PREPARING)
				twophase_expect_late(twophase_database(),
									 guc_twophase_prepare_timeout * INT64CONST(2000));
			left_over = left_over || branch->state == BRANCH_PREPARING ||
				branch->state == BRANCH_PREPARED;
			remote_close(remote);
			continue;
		}
		if (branch->state == BRANCH_PREPARED)
			send_end(branch, "ROLLBACK PREPARED '%s'", BRANCH_PREPARED);
		else if (PQtransactionStatus(remote->conn) != PQTRANS_IDLE)
			send_end(branch, "ROLLBACK", BRANCH_ENDED);
	}
	until = remote_now() + ROLL_BACK_US;
	(void) remote_wait(list, collect(list), until, false);
	for (int i = 0; i < nbranches; i++)
	{
		if (branches[i].state == BRANCH_PREPARED && branches[i].remote->state != REMOTE_CLOSED &&
			!remote_succeeded(branches[i].remote, 0, "ROLLBACK PREPARED"))
			left_over = true;
	}
	forget();
}

static void
xact_callback(XactEvent event, void *arg)
{
	if (nbranches == 0 && branch_gtid == 0)
		return;
	if (phase_two_due)
	{
		/*
		 * Another transaction has ended before phase two was done: who had it in
		 * hand was interrupted.  Nothing is rolled back any more.
		 */
		if (event == XACT_EVENT_ABORT)
		{
			twophase_not_acknowledged(twophase_database(), branch_gtid);
			left_over = true;
			forget();
		}
		return;
	}
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			if (!own_phase_two)
				pre_commit();
			break;
		case XACT_EVENT_COMMIT:
			committed();
			break;
		case XACT_EVENT_ABORT:
			aborted();
			break;
		case XACT_EVENT_PRE_PREPARE:
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("a transaction with participants cannot be prepared"),
					 errdetail("It is the coordinator of its participants and has to decide itself.")));
			break;
		default:
			break;
	}
}

static void
subxact_callback(SubXactEvent event, SubTransactionId mine, SubTransactionId parent, void *arg)
{
	int			level = GetCurrentTransactionNestLevel();

	if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		for (int i = 0; i < nbranches; i++)
			branch_roll_back_to(&branches[i], level);
	}
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		for (int i = 0; i < nbranches; i++)
		{
			if (branches[i].level < level)
				continue;
			branches[i].release = level;
			branches[i].level = level - 1;
		}
	}
}
