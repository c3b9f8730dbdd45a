/*-------------------------------------------------------------------------
 *
 * grant.c
 *	  coord.grant_use() and coord.revoke_use(); errors of SQL functions.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/identity.h"
#include "base/installation.h"
#include "base/query.h"

PG_FUNCTION_INFO_V1(coord_grant_use);
PG_FUNCTION_INFO_V1(coord_revoke_use);
PG_FUNCTION_INFO_V1(coord_internal_raise);

static const char *const kinds[] = {
	"saga", "queue", "subscription", "lock", "stream"
};

/*
 * Arguments of both; returns the grantee.  The name must be the caller's to
 * give: for sagas the owner's members and coord_admin; what has no owner yet is
 * for coord_admin.
 */
static Oid
check_grant(FunctionCallInfo fcinfo, char **kind, char **name)
{
	static Statement saga_owner = {
		"SELECT owner FROM coord_internal.saga_name WHERE name = $1", 1, {TEXTOID}
	};
	Oid			user = GetUserId();
	Oid			owner = InvalidOid;
	bool		known = false;

	installation_check();
	*kind = check_text(fcinfo, 0, "kind");
	*name = check_text(fcinfo, 1, "name");
	check_required(fcinfo, 2, "grantee");
	for (int i = 0; i < lengthof(kinds); i++)
		known = known || strcmp(kinds[i], *kind) == 0;
	if (!known)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown kind \"%s\"", *kind),
				 errhint("Kinds are saga, queue, subscription, lock and stream.")));
	if (strcmp(*kind, "saga") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("use of kind \"%s\" cannot be granted yet", *kind)));
	check_name("name", *name);

	{
		QueryScope	scope;
		Datum		value;

		query_begin(&scope);
		value = CStringGetTextDatum(*name);
		if (query_run(&saga_owner, &value, NULL, 1) > 0)
		{
			bool		isnull;

			owner = DatumGetObjectId(query_value(0, 1, &isnull));
		}
		query_end(&scope);
	}
	if (!OidIsValid(owner) || !(is_member_of_role(user, owner) || identity_sees_all(user)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("saga \"%s\" does not exist", *name)));
	return get_role_oid(NameStr(*PG_GETARG_NAME(2)), false);
}

/* coord.grant_use(kind, name, grantee): true if it was not granted already. */
Datum
coord_grant_use(PG_FUNCTION_ARGS)
{
	static Statement insert = {
		"INSERT INTO coord_internal.use_grant (kind, name, role, granted_by, granted_at)"
		" VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
		5, {TEXTOID, TEXTOID, OIDOID, OIDOID, TIMESTAMPTZOID}
	};
	Oid			user = GetUserId();
	char	   *kind;
	char	   *name;
	Oid			grantee = check_grant(fcinfo, &kind, &name);
	QueryScope	scope;
	Datum		values[5];
	bool		changed;

	query_begin(&scope);
	values[0] = CStringGetTextDatum(kind);
	values[1] = CStringGetTextDatum(name);
	values[2] = ObjectIdGetDatum(grantee);
	values[3] = ObjectIdGetDatum(user);
	values[4] = TimestampTzGetDatum(clock_now());
	changed = query_run(&insert, values, NULL, 0) > 0;
	query_end(&scope);
	identity_note_principal(grantee);
	PG_RETURN_BOOL(changed);
}

/* coord.revoke_use(kind, name, grantee): true if it was granted. */
Datum
coord_revoke_use(PG_FUNCTION_ARGS)
{
	static Statement delete = {
		"DELETE FROM coord_internal.use_grant"
		" WHERE kind = $1 AND name = $2 AND role = $3",
		3, {TEXTOID, TEXTOID, OIDOID}
	};
	char	   *kind;
	char	   *name;
	Oid			grantee = check_grant(fcinfo, &kind, &name);
	QueryScope	scope;
	Datum		values[3];
	bool		changed;

	query_begin(&scope);
	values[0] = CStringGetTextDatum(kind);
	values[1] = CStringGetTextDatum(name);
	values[2] = ObjectIdGetDatum(grantee);
	changed = query_run(&delete, values, NULL, 0) > 0;
	query_end(&scope);
	PG_RETURN_BOOL(changed);
}

/* An error raised by a function in SQL: SQLSTATE, message, hint. */
Datum
coord_internal_raise(PG_FUNCTION_ARGS)
{
	char	   *code = check_text(fcinfo, 0, "code");
	char	   *message = check_text(fcinfo, 1, "message");
	char	   *hint = check_optional_text(fcinfo, 2);

	ereport(ERROR,
			(errcode(MAKE_SQLSTATE(code[0], code[1], code[2], code[3], code[4])),
			 errmsg("%s", message),
			 hint ? errhint("%s", hint) : 0));
	PG_RETURN_NULL();
}
