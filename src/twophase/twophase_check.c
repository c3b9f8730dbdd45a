/*-------------------------------------------------------------------------
 *
 * twophase_check.c
 *	  coord.twophase_check(): what is wrong with a participant, before the first
 *	  transaction fails on it.
 *
 * Nothing that is wrong there raises an error: it is a row.  Connections are made
 * anew, side by side, and closed again.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "catalog/pg_user_mapping.h"
#include "fmgr.h"
#include "foreign/foreign.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/tuplestore.h"
#include "utils/syscache.h"

#include "base/access.h"
#include "base/check.h"
#include "base/compat.h"
#include "base/doorbell.h"
#include "base/installation.h"
#include "base/query.h"
#include "twophase/branch.h"
#include "twophase/repair.h"
#include "twophase/twophase_shared.h"

/* How long all participants together are waited for. */
#define CHECK_US (15 * USECS_PER_SEC)

#define ASK \
	"SELECT current_user, pg_catalog.current_database(), pg_catalog.pg_is_in_recovery()," \
	" pg_catalog.current_setting('transaction_read_only')," \
	" pg_catalog.current_setting('max_prepared_transactions')," \
	" (SELECT pg_catalog.count(*) FROM pg_catalog.pg_prepared_xacts)"

PG_FUNCTION_INFO_V1(coord_twophase_check);

/* One mapping of one server. */
typedef struct Subject
{
	Oid			server;
	char	   *name;
	Oid			role;			/* whose mapping is asked for */
	Oid			mapping;
	Remote	   *remote;			/* NULL: "error" says why */
	char	   *error;
	int			sqlstate;
} Subject;

static void
add_row(ReturnSetInfo *rsinfo, const char *server, const char *check, bool ok, const char *detail)
{
	Datum		values[4];
	bool		nulls[4] = {false};
	NameData	name;

	nulls[0] = server == NULL;
	namestrcpy(&name, server ? server : "");
	values[0] = NameGetDatum(&name);
	values[1] = CStringGetTextDatum(check);
	values[2] = BoolGetDatum(ok);
	values[3] = CStringGetTextDatum(detail);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/* What is needed here. */
static void
check_here(ReturnSetInfo *rsinfo)
{
	EngineState state = installation_state();

	doorbell_attach();
	if (coord_shared->launcher_pid == 0)
		add_row(rsinfo, NULL, "launcher", false,
				"coord's launcher is not running, so no participant can be used: add coord to shared_preload_libraries and restart the server.");
	else
		add_row(rsinfo, NULL, "launcher", true,
				"coord's launcher is running, and starts the resolver when there is something to finish.");
	if (state == ENGINE_RUNNING)
		add_row(rsinfo, NULL, "engine", true, "The resolver may act.");
	else
		add_row(rsinfo, NULL, "engine", false,
				state == ENGINE_DISABLED ?
				"coord.enabled is off, so the resolver finishes nothing: set it on, and reload." :
				state == ENGINE_COPY ?
				"This database is a copy and does not act, so no participant can be used: SELECT coord.resume(); if it shall." :
				"coord is paused, so the resolver finishes nothing: SELECT coord.resume().");
}

/* Has the role a user mapping there, or is there PUBLIC's? */
static Oid
find_mapping(Oid role, Oid server)
{
	Oid			result = GetSysCacheOid2(USERMAPPINGUSERSERVER, Anum_pg_user_mapping_oid,
										 ObjectIdGetDatum(role), ObjectIdGetDatum(server));

	if (!OidIsValid(result))
		result = GetSysCacheOid2(USERMAPPINGUSERSERVER, Anum_pg_user_mapping_oid,
								 ObjectIdGetDatum(InvalidOid), ObjectIdGetDatum(server));
	return result;
}

/* Begin to connect; "error" when that cannot even be tried. */
static void
begin(Subject *subject)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		subject->remote = remote_find(GetForeignServer(subject->server),
									  GetUserMapping(subject->role, subject->server));
		remote_close(subject->remote);
		remote_start(subject->remote);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		subject->remote = NULL;
		subject->sqlstate = error->sqlerrcode;
		subject->error = error->message;
	}
	PG_END_TRY();
}

static void
close_all(Subject *subjects, int count)
{
	for (int i = 0; i < count; i++)
	{
		if (subjects[i].remote != NULL)
			remote_close(subjects[i].remote);
	}
}

/* Wait for all of them, or until "until". */
static void
wait_all(Subject *subjects, int count, int64 until)
{
	Remote	   *list[COORD_MAX_PARTICIPANTS];
	int			n = 0;

	for (int i = 0; i < count; i++)
	{
		if (subjects[i].remote != NULL && remote_is_under_way(subjects[i].remote))
			list[n++] = subjects[i].remote;
	}
	(void) remote_wait(list, n, until, true);
}

/* What the connection's answer, or its lack, means. */
static void
report_connection(ReturnSetInfo *rsinfo, const Subject *subject)
{
	Remote	   *remote = subject->remote;
	PGresult   *result = remote->state == REMOTE_IDLE ? remote->results[0] : NULL;
	bool		recovery;
	int			most;
	int			there;

	if (remote->conn != NULL && remote->must_use_password &&
		PQstatus(remote->conn) == CONNECTION_OK && !PQconnectionUsedPassword(remote->conn))
	{
		add_row(rsinfo, subject->name, "password", false,
				"The server did not ask for the password of the user mapping, so a role that is no superuser may not use it: change its authentication method, or let a superuser set password_required=false in the mapping.");
		return;
	}
	if (result == NULL || remote_error(remote) != NULL)
	{
		const char *why = remote->conn == NULL ? "" : remote_error(remote) ?
			PQresultErrorField(remote_error(remote), PG_DIAG_MESSAGE_PRIMARY) :
			PQerrorMessage(remote->conn);

		add_row(rsinfo, subject->name, "connection", false,
				psprintf("It cannot be connected to: %s", *why ? pchomp(why) :
						 remote_is_under_way(remote) ? "it did not answer in time." :
						 "there are too many open files here."));
		return;
	}
	add_row(rsinfo, subject->name, "connection", true,
			psprintf("Connected as \"%s\" to database \"%s\".", PQgetvalue(result, 0, 0),
					 PQgetvalue(result, 0, 1)));
	recovery = PQgetvalue(result, 0, 2)[0] == 't';
	if (recovery)
		add_row(rsinfo, subject->name, "primary", false,
				"It is a standby: point the server's options at the primary, or use target_session_attrs.");
	else if (strcmp(PQgetvalue(result, 0, 3), "on") == 0)
		add_row(rsinfo, subject->name, "primary", false,
				"It is a primary, but transactions are read-only there by default: see default_transaction_read_only.");
	else
		add_row(rsinfo, subject->name, "primary", true, "It is a primary.");
	most = atoi(PQgetvalue(result, 0, 4));
	there = atoi(PQgetvalue(result, 0, 5));
	if (most == 0)
		add_row(rsinfo, subject->name, "prepared_transactions", false,
				"max_prepared_transactions is 0, so nothing can be prepared there: set it to the number of sessions that commit at a time, and more, and restart that server.");
	else
		add_row(rsinfo, subject->name, "prepared_transactions", there < most,
				psprintf("max_prepared_transactions is %d, and there are %d%s", most, there,
						 there < most ? "." :
						 ": raise it and restart that server, or end what is left over in pg_prepared_xacts there."));
	if (remote->pooled)
		add_row(rsinfo, subject->name, "pooler", true,
				"There is a pooler in between, which must not pool statements. It is slower, and sessions are not reset: what a statement SETs there stays.");
	else
		add_row(rsinfo, subject->name, "pooler", true, "There is no pooler in between.");
}

/* What the resolver found there, as far as it has looked. */
static void
report_resolver(ReturnSetInfo *rsinfo, const Subject *subject)
{
	static Statement read = {
		"SELECT p.error, (SELECT count(*) FROM coord_internal.twophase_in_doubt i WHERE i.server = $2)"
		" FROM coord_internal.twophase_participant p WHERE p.mapping = $1",
		2, {OIDOID, OIDOID}
	};
	MemoryContext context = CurrentMemoryContext;
	QueryScope	scope;
	Datum		values[2];
	bool		known;
	char	   *error = NULL;
	int64		in_doubt = 0;

	values[0] = ObjectIdGetDatum(subject->mapping);
	values[1] = ObjectIdGetDatum(subject->server);
	query_begin(&scope);
	known = query_run_latest(&read, values, NULL, 1) > 0;
	if (known)
	{
		error = query_text(context, 0, 1);
		in_doubt = query_int8(0, 2);
	}
	query_end(&scope);
	if (error != NULL)
		add_row(rsinfo, subject->name, "resolver", false,
				psprintf("The resolver's last look there failed: %s", error));
	else
		add_row(rsinfo, subject->name, "resolver", true,
				known ? "The resolver has no trouble there." : "It has not been used yet.");
	add_row(rsinfo, subject->name, "in_doubt", in_doubt == 0,
			in_doubt == 0 ? "Nothing is in doubt there." :
			psprintf(INT64_FORMAT " prepared transactions are in doubt there, and keep their locks: see coord.twophase_in_doubt.",
					 in_doubt));
}

/* All that is to be said of one mapping of one server. */
static void
report(ReturnSetInfo *rsinfo, const Subject *subject)
{
	const char *role = GetUserNameFromId(subject->role, true);

	if (coord_server_aclcheck(subject->server, subject->role) != ACLCHECK_OK)
	{
		add_row(rsinfo, subject->name, "usage", false,
				psprintf("Role \"%s\" may not use it: GRANT USAGE ON FOREIGN SERVER %s TO %s.", role,
						 quote_identifier(subject->name), quote_identifier(role)));
		return;
	}
	if (!OidIsValid(subject->mapping))
	{
		add_row(rsinfo, subject->name, "mapping", false,
				psprintf("Role \"%s\" has no user mapping: CREATE USER MAPPING FOR %s SERVER %s OPTIONS (user '..', password '..').",
						 role, quote_identifier(role), quote_identifier(subject->name)));
		return;
	}
	add_row(rsinfo, subject->name, "mapping", true,
			psprintf("The user mapping of role \"%s\" is used.", role));
	if (subject->remote == NULL)
		add_row(rsinfo, subject->name,
				subject->sqlstate == ERRCODE_S_R_E_PROHIBITED_SQL_STATEMENT_ATTEMPTED ? "password" : "connection",
				false,
				subject->sqlstate == ERRCODE_S_R_E_PROHIBITED_SQL_STATEMENT_ATTEMPTED ?
				psprintf("Role \"%s\" is no superuser and its mapping has no password: add one, or let a superuser set password_required=false in it.",
						 role) :
				psprintf("It cannot be connected to: %s", subject->error));
	else
		report_connection(rsinfo, subject);
	report_resolver(rsinfo, subject);
}

/*
 * Servers that are meant: the named one, or those of postgres_fdw that the caller could
 * use, or that are participants.  In the current memory context.
 */
static List *
meant_servers(const char *name, bool all)
{
	static Statement read = {
		"SELECT f.oid FROM pg_foreign_server f JOIN pg_foreign_data_wrapper w ON w.oid = f.srvfdw"
		" WHERE w.fdwname = 'postgres_fdw'"
		" AND (EXISTS (SELECT FROM pg_user_mapping m WHERE m.umserver = f.oid AND m.umuser IN (0, $1))"
		"  OR $2 AND EXISTS (SELECT FROM coord_internal.twophase_participant p WHERE p.server = f.oid))"
		" ORDER BY f.srvname",
		2, {OIDOID, BOOLOID}
	};
	MemoryContext context = CurrentMemoryContext;
	QueryScope	scope;
	Datum		values[2];
	List	   *result = NIL;
	uint64		rows;

	if (name != NULL)
		return list_make1_oid(GetForeignServerByName(name, false)->serverid);
	values[0] = ObjectIdGetDatum(GetUserId());
	values[1] = BoolGetDatum(all);
	query_begin(&scope);
	rows = query_run_latest(&read, values, NULL, 0);
	for (uint64 i = 0; i < rows; i++)
	{
		bool		isnull;
		Oid			server = DatumGetObjectId(query_value(i, 1, &isnull));
		MemoryContext old = MemoryContextSwitchTo(context);

		result = lappend_oid(result, server);
		MemoryContextSwitchTo(old);
	}
	query_end(&scope);
	return result;
}

/*
 * Whose mappings are to be tried: the caller's, and, for who rules here, all that are
 * written down; then one's own only if there is one, or no other.
 */
static List *
meant_roles(Oid server, bool all)
{
	List	   *result = all ? repair_roles(server, false) : NIL;
	Oid			user = GetUserId();

	if (result == NIL || OidIsValid(find_mapping(user, server)))
		result = list_append_unique_oid(result, user);
	return result;
}

/* Try some, at most COORD_MAX_PARTICIPANTS, at the same time. */
static void
check_some(ReturnSetInfo *rsinfo, Subject *subjects, int count)
{
	int64		until = remote_now() + CHECK_US;

	PG_TRY();
	{
		for (int i = 0; i < count; i++)
		{
			if (OidIsValid(subjects[i].mapping) &&
				coord_server_aclcheck(subjects[i].server, subjects[i].role) == ACLCHECK_OK)
				begin(&subjects[i]);
		}
		wait_all(subjects, count, until);
		for (int i = 0; i < count; i++)
		{
			Remote	   *remote = subjects[i].remote;

			if (remote == NULL || remote->state != REMOTE_IDLE)
				continue;
			remote_batch(remote);
			(void) remote_add(remote, ASK, 0, NULL, false);
			(void) remote_go(remote);
		}
		wait_all(subjects, count, until);
		for (int i = 0; i < count; i++)
			report(rsinfo, &subjects[i]);
	}
	PG_FINALLY();
	{
		close_all(subjects, count);
	}
	PG_END_TRY();
}

/* coord.twophase_check(server) */
Datum
coord_twophase_check(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	bool		all = access_sees_all(GetUserId());
	List	   *servers;
	ListCell   *cell;
	Subject    *subjects = palloc(sizeof(Subject) * COORD_MAX_PARTICIPANTS);
	int			count = 0;

	installation_check();
	check_not_in_recovery("coord.twophase_check()");
	if (nbranches > 0)
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("%s() cannot be called in a transaction that has participants",
						"coord.twophase_check"),
				 errhint("Call it by itself.")));
	InitMaterializedSRF(fcinfo, 0);
	servers = meant_servers(PG_ARGISNULL(0) ? NULL : NameStr(*PG_GETARG_NAME(0)), all);
	check_here(rsinfo);
	foreach(cell, servers)
	{
		ForeignServer *server = GetForeignServer(lfirst_oid(cell));
		ForeignDataWrapper *wrapper = GetForeignDataWrapper(server->fdwid);
		List	   *roles = meant_roles(server->serverid, all);
		ListCell   *role;

		if (strcmp(wrapper->fdwname, "postgres_fdw") != 0)
		{
			add_row(rsinfo, server->servername, "server", false,
					psprintf("It is a server of the foreign-data wrapper \"%s\": only those of postgres_fdw can be participants.",
							 wrapper->fdwname));
			continue;
		}
		foreach(role, roles)
		{
			Subject    *subject;

			if (count == COORD_MAX_PARTICIPANTS)
			{
				check_some(rsinfo, subjects, count);
				count = 0;
			}
			subject = &subjects[count++];
			memset(subject, 0, sizeof(Subject));
			subject->server = server->serverid;
			subject->name = server->servername;
			subject->role = lfirst_oid(role);
			subject->mapping = find_mapping(subject->role, subject->server);
		}
	}
	check_some(rsinfo, subjects, count);
	return (Datum) 0;
}
