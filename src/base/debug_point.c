/*-------------------------------------------------------------------------
 *
 * debug_point.c
 *	  Places where tests stop, fail or kill a process.
 *
 * Compiled in with -DCOORD_DEBUG_POINTS only.  coord.debug_point names an
 * action and a point: "error:NAME" raises an error there, "crash:NAME" kills
 * the process with SIGKILL, "wait:NAME" takes and releases the advisory lock
 * (DEBUG_LOCK_CLASS, hashtext(NAME)), so that a test which holds that lock
 * decides when the process goes on, and sees it in pg_locks meanwhile.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#ifdef COORD_DEBUG_POINTS

#include <signal.h>

#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/lock.h"

#include "base/debug_point.h"
#include "base/guc.h"

#define DEBUG_LOCK_CLASS 20190315

static bool
matches(const char *action, const char *name)
{
	size_t		length = strlen(action);

	return strncmp(guc_debug_point, action, length) == 0 &&
		strcmp(guc_debug_point + length, name) == 0;
}

void
debug_point(const char *name)
{
	if (guc_debug_point == NULL || *guc_debug_point == '\0')
		return;
	if (matches("error:", name))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("debug point \"%s\"", name)));
	if (matches("crash:", name))
		kill(MyProcPid, SIGKILL);
	if (matches("wait:", name))
	{
		LOCKTAG		tag;

		SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, DEBUG_LOCK_CLASS,
							 DatumGetInt32(hash_any((const unsigned char *) name,
													strlen(name))), 2);
		(void) LockAcquire(&tag, ExclusiveLock, true, false);
		LockRelease(&tag, ExclusiveLock, true);
	}
}

#endif							/* COORD_DEBUG_POINTS */
