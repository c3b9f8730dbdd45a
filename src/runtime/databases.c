/*-------------------------------------------------------------------------
 *
 * databases.c
 *	  Staying out of the way of statements about whole databases.
 *
 * DROP DATABASE, RENAME, SET TABLESPACE and CREATE DATABASE .. TEMPLATE want a
 * database to which nobody is connected.  The utility hook sends coord's workers
 * home first, waits until they are gone, and lets none in until the statement
 * has ended, however it ends.  DROP EXTENSION coord does the same in its own
 * database, lest it wait for a step that takes an hour.  The hook also rings after COMMIT PREPARED and
 * ROLLBACK PREPARED, whose callbacks run in a session that knows nothing of what
 * was prepared.
 *
 * Works in sessions that have the library, that is with preload.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "tcop/utility.h"

#include "base/compat.h"
#include "runtime/runtime.h"
#include "saga/saga.h"
#include "twophase/twophase.h"

/* How often, at 100 ms, the resolver is waited for. */
#define RESOLVER_ROUNDS 50

static ProcessUtility_hook_type next_hook = NULL;

/* The database a statement wants for itself; NULL: none. */
static const char *
wanted_database(Node *statement)
{
	ListCell   *cell;

	switch (nodeTag(statement))
	{
		case T_DropdbStmt:
			return ((DropdbStmt *) statement)->dbname;
		case T_RenameStmt:
			if (((RenameStmt *) statement)->renameType == OBJECT_DATABASE)
				return ((RenameStmt *) statement)->subname;
			return NULL;
		case T_AlterDatabaseStmt:
			foreach(cell, ((AlterDatabaseStmt *) statement)->options)
			{
				if (strcmp(((DefElem *) lfirst(cell))->defname, "tablespace") == 0)
					return ((AlterDatabaseStmt *) statement)->dbname;
			}
			return NULL;
		case T_CreatedbStmt:
			foreach(cell, ((CreatedbStmt *) statement)->options)
			{
				DefElem    *option = lfirst(cell);

				if (strcmp(option->defname, "template") == 0 && option->arg)
					return defGetString(option);
			}
			return NULL;		/* template1, where no worker goes */
		default:
			return NULL;
	}
}

/*
 * Send the workers of a database home and keep them out until
 * release_database().  Waits; can be cancelled.
 */
static void
take_database(DatabaseSlot *slot)
{
	static uint32 wait_event = 0;
	Oid			database = slot->database;
	bool		any = true;
	int			round = 0;

	LWLockAcquire(&coord_shared->lock, LW_EXCLUSIVE);
	slot->wanted_by = MyProcPid;
	LWLockRelease(&coord_shared->lock);
	ConditionVariablePrepareToSleep(&slot->workers_changed);
	while (any)
	{
		any = false;
		LWLockAcquire(&coord_shared->lock, LW_EXCLUSIVE);
		for (int i = 0; i < COORD_MAX_WORKERS; i++)
		{
			WorkerSlot *worker = &coord_shared->workers[i];

			if (worker->state == WORKER_FREE || worker->database != database)
				continue;
			any = true;
			if (worker->pid == 0)
				continue;

			/* One that is in the middle of a step has to be told louder. */
			worker->asked_to_stop = true;
			SetLatch(&ProcGlobal->allProcs[worker->procno].procLatch);
			if (round > 0)
				kill(worker->pid, SIGTERM);
		}
		LWLockRelease(&coord_shared->lock);
		twophase_stop_resolver(database, round > 0);

		/* One that does not come or go must not hold the statement up for ever. */
		any = any || (round < RESOLVER_ROUNDS && !twophase_resolver_is_gone(database));
		if (any)
			(void) ConditionVariableTimedSleep(&slot->workers_changed, 100,
											   coord_wait_event(&wait_event, "CoordDatabase"));
		round++;
	}
	ConditionVariableCancelSleep();
}

static void
release_database(DatabaseSlot *slot)
{
	LWLockAcquire(&coord_shared->lock, LW_EXCLUSIVE);
	if (slot->wanted_by == MyProcPid)
		slot->wanted_by = 0;
	LWLockRelease(&coord_shared->lock);
	doorbell_wake_launcher();
}

/* Is it DROP EXTENSION coord? */
static bool
drops_coord(Node *statement)
{
	ListCell   *cell;

	if (!IsA(statement, DropStmt) ||
		((DropStmt *) statement)->removeType != OBJECT_EXTENSION)
		return false;
	foreach(cell, ((DropStmt *) statement)->objects)
	{
		if (strcmp(strVal(lfirst(cell)), "coord") == 0)
			return true;
	}
	return false;
}

static void
utility_hook(PlannedStmt *pstmt, const char *queryString, bool readOnlyTree,
			 ProcessUtilityContext context, ParamListInfo params,
			 QueryEnvironment *queryEnv, DestReceiver *dest, QueryCompletion *qc)
{
	Node	   *statement = pstmt->utilityStmt;
	const char *name = wanted_database(statement);
	DatabaseSlot *volatile slot = NULL;
	bool		came_or_went = IsA(statement, CreatedbStmt) || IsA(statement, DropdbStmt);

	if (IsA(statement, DropStmt) || IsA(statement, DropOwnedStmt) || IsA(statement, DropdbStmt))
		twophase_check_drop(statement);

	/* Whoever may not do it does not get to stop workers either. */
	if (name != NULL)
	{
		Oid			database = get_database_oid(name, true);

		if (OidIsValid(database) &&
			(database != MyDatabaseId || IsA(statement, CreatedbStmt)) &&
			coord_owns_database(database, GetUserId()))
		{
			doorbell_attach();
			slot = doorbell_database(database, true);
		}
	}

	else if (drops_coord(statement) && superuser())
	{
		doorbell_attach();
		slot = doorbell_database(MyDatabaseId, true);
	}

	PG_TRY();
	{
		if (slot != NULL)
			take_database(slot);
		if (next_hook)
			next_hook(pstmt, queryString, readOnlyTree, context, params,
					  queryEnv, dest, qc);
		else
			standard_ProcessUtility(pstmt, queryString, readOnlyTree, context,
									params, queryEnv, dest, qc);
	}
	PG_FINALLY();
	{
		if (slot != NULL)
			release_database(slot);
	}
	PG_END_TRY();

	if (came_or_went)
	{
		/* A new one may be a copy with coord in it: it is to be told so. */
		doorbell_attach();
		coord_shared->rescan = true;
		doorbell_wake_launcher();
	}
	else if (IsA(statement, TransactionStmt) &&
			 (((TransactionStmt *) statement)->kind == TRANS_STMT_COMMIT_PREPARED ||
			  ((TransactionStmt *) statement)->kind == TRANS_STMT_ROLLBACK_PREPARED))
	{
		doorbell_attach();
		doorbell_ring_scan(MyDatabaseId);
		queue_look_again();
	}
}

/* Called from _PG_init while shared_preload_libraries is processed. */
void
databases_install_hook(void)
{
	next_hook = ProcessUtility_hook;
	ProcessUtility_hook = utility_hook;
}
