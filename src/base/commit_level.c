/*-------------------------------------------------------------------------
 *
 * commit_level.c
 *	  How durable the open transaction's commit is to be.
 *
 * Some of what coord writes may be lost in a crash without harm: a claim is then
 * claimable again, a lease that was released runs out.  A transaction that has
 * done nothing else need not wait for the disk.  Other things are worth nothing
 * unless they are durable, whatever the session says.  Either way the session's
 * synchronous_commit is changed for the commit alone.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"

#include "base/commit_level.h"
#include "base/compat.h"

/*
 * Where the log of the open transaction ended after the last thing that may be
 * lost, if it has done nothing else until then; else 0.
 */
static XLogRecPtr late_end = InvalidXLogRecPtr;

/* The open transaction is to be durable. */
static bool durable = false;

/* The session's synchronous_commit while a commit goes otherwise; else -1. */
static int	saved_synchronous_commit = -1;

static void
xact_callback(XactEvent event, void *arg)
{
	int			wanted = synchronous_commit;

	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			if (durable && wanted < SYNCHRONOUS_COMMIT_REMOTE_FLUSH)
				wanted = SYNCHRONOUS_COMMIT_REMOTE_FLUSH;
			else if (!durable && late_end != InvalidXLogRecPtr && late_end == XactLastRecEnd)
				wanted = SYNCHRONOUS_COMMIT_OFF;
			if (wanted != synchronous_commit)
			{
				saved_synchronous_commit = synchronous_commit;
				coord_set_synchronous_commit(wanted);
			}
			break;
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			if (saved_synchronous_commit >= 0)
				coord_set_synchronous_commit(saved_synchronous_commit);
			saved_synchronous_commit = -1;
			late_end = InvalidXLogRecPtr;
			durable = false;
			break;
		default:
			break;
	}
}

/*
 * Get ready: who calls the functions below in a callback of their own, that is
 * registered later, has called this before.
 */
void
commit_level_attach(void)
{
	static bool registered = false;

	if (!registered)
		RegisterXactCallback(xact_callback, NULL);
	registered = true;
}

/* Has the open transaction written nothing but what may be lost? */
bool
commit_may_be_late(void)
{
	commit_level_attach();
	return XactLastRecEnd == late_end;
}

/* Something was written that may be lost; "nothing_else" was asked for before. */
void
commit_late(bool nothing_else)
{
	late_end = nothing_else ? XactLastRecEnd : InvalidXLogRecPtr;
}

/* The open transaction's commit is to be on disk before anybody hears of it. */
void
commit_durably(void)
{
	commit_level_attach();
	durable = true;
}
