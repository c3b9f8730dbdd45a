/*-------------------------------------------------------------------------
 *
 * identity.c
 *	  Who is acting: the extension's owner for coord's tables, the owner of
 *	  the work for user code.
 *
 * User code runs with the effective user set to the owner of the work and
 * SECURITY_LOCAL_USERID_CHANGE, so that SET ROLE, RESET ROLE and SET SESSION
 * AUTHORIZATION are refused.  In a worker the session user behind it is the
 * powerless role coord_worker.  Even so, a few things that core does later,
 * when the effective user has changed back, must not be left behind:
 *
 * 1. Deferred triggers run at commit as whoever is then the effective user.
 *	  identity_leave_call() fires them while the owner still acts.
 * 2. A WITH HOLD cursor is materialised at commit, its query then running as
 *	  somebody else.  It is closed (in a worker every portal is the step's),
 *	  and because closing can run user code that defers again, triggers are
 *	  fired once more.
 * 3. Settings: everything set inside is rolled back with a GUC nest level, not
 *	  kept as the end of a function with a SET clause would keep it.
 * 4. Temporary objects could shadow tables for the next owner's code, prepared
 *	  statements and session advisory locks would outlive their owner: a worker
 *	  drops them.
 *
 * In the session of a caller (CALL coord.run_pending) there is no dropping:
 * these things may be the caller's own.  There, code of a role other than the
 * caller runs as a security-restricted operation, in which core refuses to
 * make temporary objects, WITH HOLD cursors, prepared statements and LISTENs
 * in the first place.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_type.h"
#include "commands/prepare.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/syscache.h"

#include "base/identity.h"

/* Set once by a worker when it starts: the session is coord's own. */
static bool session_is_worker = false;

void
identity_session_is_worker(void)
{
	session_is_worker = true;
}

bool
identity_is_worker(void)
{
	return session_is_worker;
}

/*
 * Act as the owner of the extension, who owns schema coord_internal.  The
 * lookup is two syscache hits, so that a change of owner is seen at once.
 */
void
identity_become_extension_owner(Identity *saved)
{
	Oid			namespace = get_namespace_oid("coord_internal", true);
	HeapTuple	tuple = NULL;
	Oid			owner;

	if (OidIsValid(namespace))
		tuple = SearchSysCache1(NAMESPACEOID, ObjectIdGetDatum(namespace));
	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("extension \"coord\" is not installed in this database"),
				 errhint("Run CREATE EXTENSION coord.")));
	owner = ((Form_pg_namespace) GETSTRUCT(tuple))->nspowner;
	ReleaseSysCache(tuple);

	GetUserIdAndSecContext(&saved->user, &saved->security_context);
	SetUserIdAndSecContext(owner,
						   saved->security_context | SECURITY_LOCAL_USERID_CHANGE);
}

void
identity_restore(const Identity *saved)
{
	SetUserIdAndSecContext(saved->user, saved->security_context);
}

/*
 * Become "role" with the given search_path, for one or more calls of user
 * code, each wrapped in identity_enter_call() and identity_leave_call().  No
 * query of coord's own may run until identity_leave_user().
 */
void
identity_enter_user(UserScope *scope, Oid role, const char *search_path)
{
	int			context;

	GetUserIdAndSecContext(&scope->identity.user,
						   &scope->identity.security_context);
	context = scope->identity.security_context | SECURITY_LOCAL_USERID_CHANGE;
	if (!session_is_worker && role != scope->identity.user)
		context |= SECURITY_RESTRICTED_OPERATION;
	SetUserIdAndSecContext(role, context);

	scope->guc_level = NewGUCNestLevel();
	(void) set_config_option("search_path", search_path,
							 PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
}

void
identity_leave_user(UserScope *scope)
{
	AtEOXact_GUC(false, scope->guc_level);
	identity_restore(&scope->identity);
}

/*
 * Before one call of user code; returns what identity_leave_call() wants.
 */
int
identity_enter_call(const char *correlation_id)
{
	int			guc_level = NewGUCNestLevel();

	if (correlation_id != NULL)
		(void) set_config_option("coord.correlation_id", correlation_id,
								 PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	return guc_level;
}

/*
 * After one call of user code, still as its owner: run what core would run at
 * commit and clear away what must not reach anybody else's code.  May raise
 * any error that user code can.
 */
void
identity_leave_call(int guc_level)
{
	AfterTriggerFireDeferred();
	if (session_is_worker)
	{
		PortalHashTableDeleteAll();
		AfterTriggerFireDeferred();
		ResetTempTableNamespace();
		identity_forget_session();
	}
	AtEOXact_GUC(false, guc_level);
}

/*
 * In a worker, drop what neither belongs to the transaction nor is rolled back
 * with it.  Also after a call that failed.  Raises nothing.
 */
void
identity_forget_session(void)
{
	if (!session_is_worker)
		return;
	DropAllPreparedStatements();
	LockReleaseSession(USER_LOCKMETHOD);
}
