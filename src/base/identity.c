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
#include "base/installation.h"
#include "base/query.h"

/* Set once by a worker when it starts: the session is coord's own. */
static bool session_is_worker = false;

/*
 * Roles that are known to be in coord_internal.principal.  Entries beyond
 * "principals_committed" were added by the open transaction.
 */
static Oid *principals = NULL;
static int	nprincipals = 0;
static int	principals_committed = 0;
static bool principals_callback = false;

/* The schema they were noted in: another one after DROP and CREATE EXTENSION. */
static Oid	principals_namespace = InvalidOid;

PG_FUNCTION_INFO_V1(coord_internal_is_mine);
PG_FUNCTION_INFO_V1(coord_internal_role_name);
PG_FUNCTION_INFO_V1(coord_internal_sees_all);

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

/*
 * Does "role" see every row of coord's views?  coord_admin and pg_monitor do,
 * and superusers, who are members of every role.
 */
bool
identity_sees_all(Oid role)
{
	Oid			admin;

	if (superuser_arg(role))
		return true;
	admin = get_role_oid("coord_admin", true);
	if (OidIsValid(admin) && is_member_of_role(role, admin))
		return true;
	return false;
}

Datum
coord_internal_sees_all(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(identity_sees_all(GetUserId()) ||
				   has_privs_of_role(GetUserId(), ROLE_PG_MONITOR));
}

/*
 * Is the current user a member of the role that a table's oid means?  In a copy
 * under another system identifier it means somebody else until coord.resume()
 * has put that right, so nobody is.
 */
static bool
is_mine(Oid owner)
{
	return is_member_of_role(GetUserId(), owner) && !installation_is_foreign();
}

Datum
coord_internal_is_mine(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(!PG_ARGISNULL(0) && is_mine(PG_GETARG_OID(0)));
}

/*
 * May the current user act on something of "owner": as its member, as
 * coord_admin, or through coord.grant_use(kind, name)?  "name" may be NULL
 * where use cannot be granted.
 */
bool
identity_may_act(Oid owner, const char *kind, const char *name)
{
	static Statement grants = {
		"SELECT role FROM coord_internal.use_grant WHERE kind = $1 AND name = $2",
		2, {TEXTOID, TEXTOID}
	};
	Oid			user = GetUserId();
	QueryScope	scope;
	Datum		values[2];
	bool		found = false;
	uint64		rows;

	if (is_mine(owner) || identity_sees_all(user))
		return true;
	if (name == NULL || installation_is_foreign())
		return false;

	query_begin(&scope);
	values[0] = CStringGetTextDatum(kind);
	values[1] = CStringGetTextDatum(name);
	rows = query_run(&grants, values, NULL, 0);
	for (uint64 i = 0; i < rows && !found; i++)
	{
		bool		isnull;
		Oid			role = DatumGetObjectId(query_value(i, 1, &isnull));

		found = is_member_of_role(user, role);
	}
	query_end(&scope);
	return found;
}

/*
 * A role noted by a transaction that is rolled back, or that rolls back a
 * savepoint, is taken as not noted.
 */
static void
principals_xact_callback(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT)
		principals_committed = nprincipals;
	else if (event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
		nprincipals = principals_committed;
}

static void
principals_subxact_callback(SubXactEvent event, SubTransactionId mine,
							SubTransactionId parent, void *arg)
{
	if (event == SUBXACT_EVENT_ABORT_SUB)
		nprincipals = principals_committed;
}

/* Is there nothing to note for "role", as far as this process knows? */
bool
identity_principal_is_noted(Oid role)
{
	if (principals_namespace != get_namespace_oid("coord_internal", true))
		nprincipals = principals_committed = 0;
	for (int i = 0; i < nprincipals; i++)
	{
		if (principals[i] == role)
			return true;
	}
	return false;
}

/*
 * Keep the name of "role" beside its oid, which the tables store: a rename
 * changes nothing then, and a copy in another cluster, where the oid is
 * somebody else's, finds the role again by its name (coord.resume()).  To be
 * called in a short transaction of its own: a concurrent one of the same role
 * waits for its end.
 */
void
identity_note_principal(Oid role)
{
	static Statement note = {
		"INSERT INTO coord_internal.principal (role, name)"
		" SELECT oid, rolname FROM pg_catalog.pg_authid WHERE oid = $1"
		" ON CONFLICT DO NOTHING",
		1, {OIDOID}
	};
	QueryScope	scope;
	Datum		value = ObjectIdGetDatum(role);

	if (identity_principal_is_noted(role))
		return;
	principals_namespace = get_namespace_oid("coord_internal", true);
	if (!principals_callback)
	{
		RegisterXactCallback(principals_xact_callback, NULL);
		RegisterSubXactCallback(principals_subxact_callback, NULL);
		principals_callback = true;
	}

	query_begin(&scope);
	query_run(&note, &value, NULL, 0);
	query_end(&scope);

	if (principals == NULL)
		principals = MemoryContextAlloc(TopMemoryContext, sizeof(Oid));
	else
		principals = repalloc(principals, (nprincipals + 1) * sizeof(Oid));
	principals[nprincipals++] = role;
}

/*
 * The names of noted roles may have changed since.  For workers, in a short
 * transaction.
 */
void
identity_refresh_principals(void)
{
	static Statement refresh = {
		"UPDATE coord_internal.principal p SET name = a.rolname"
		" FROM pg_catalog.pg_authid a WHERE a.oid = p.role AND a.rolname <> p.name",
		0, {0}
	};
	QueryScope	scope;

	query_begin(&scope);
	query_run(&refresh, NULL, NULL, 0);
	query_end(&scope);
}

/* A role's name, also that of one that was dropped; else its oid. */
Datum
coord_internal_role_name(PG_FUNCTION_ARGS)
{
	static Statement read = {
		"SELECT name::text FROM coord_internal.principal WHERE role = $1",
		1, {OIDOID}
	};
	Name		result = palloc0(NAMEDATALEN);
	QueryScope	scope;
	Datum		value;
	char	   *name;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	value = PG_GETARG_DATUM(0);
	name = GetUserNameFromId(DatumGetObjectId(value), true);
	if (name == NULL)
	{
		MemoryContext context = CurrentMemoryContext;

		query_begin(&scope);
		if (query_run(&read, &value, NULL, 1) > 0)
			name = query_text(context, 0, 1);
		query_end(&scope);
	}
	if (name == NULL)
		name = psprintf("%u", DatumGetObjectId(value));
	namestrcpy(result, name);
	PG_RETURN_NAME(result);
}
