/*-------------------------------------------------------------------------
 *
 * compat.h
 *	  What differs between PostgreSQL 15 and 19, and nothing else.
 *
 * Every difference is a static inline function (or, where a type is meant, a
 * macro) that has the newest server's signature, so that the rest of the tree
 * reads as if there were only one server.  No other file looks at
 * PG_VERSION_NUM.
 *
 *-------------------------------------------------------------------------
 */
#ifndef COORD_COMPAT_H
#define COORD_COMPAT_H

#include "catalog/pg_class.h"
#include "catalog/pg_database.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_proc.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "lib/dshash.h"
#include "nodes/plannodes.h"
#include "parser/parsetree.h"
#include "storage/condition_variable.h"
#include "storage/lock.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "utils/acl.h"
#include "utils/guc.h"
#if PG_VERSION_NUM < 160000
#include "replication/syncrep.h"
#else
#include "utils/guc_hooks.h"
#endif
#include "utils/jsonb.h"
#include "utils/regproc.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#if PG_VERSION_NUM < 170000
#include "storage/backendid.h"
#else
#include "storage/procnumber.h"
#endif

/* May "role" execute "function"?  16 made the check generic. */
static inline AclResult
coord_function_aclcheck(Oid function, Oid role)
{
#if PG_VERSION_NUM < 160000
	return pg_proc_aclcheck(function, role, ACL_EXECUTE);
#else
	return object_aclcheck(ProcedureRelationId, function, role, ACL_EXECUTE);
#endif
}

/* May "role" use the foreign server? */
static inline AclResult
coord_server_aclcheck(Oid server, Oid role)
{
#if PG_VERSION_NUM < 160000
	return pg_foreign_server_aclcheck(server, role, ACL_USAGE);
#else
	return object_aclcheck(ForeignServerRelationId, server, role, ACL_USAGE);
#endif
}

/* May "role" use the objects of "schema"? */
static inline AclResult
coord_schema_aclcheck(Oid schema, Oid role)
{
#if PG_VERSION_NUM < 160000
	return pg_namespace_aclcheck(schema, role, ACL_USAGE);
#else
	return object_aclcheck(NamespaceRelationId, schema, role, ACL_USAGE);
#endif
}

/* The relations that a plan writes; 19 has a set of them. */
static inline List *
coord_written_relations(PlannedStmt *statement)
{
	List	   *result = NIL;
#if PG_VERSION_NUM < 190000
	ListCell   *cell;

	foreach(cell, statement->resultRelations)
		result = lappend_oid(result, rt_fetch(lfirst_int(cell), statement->rtable)->relid);
#else
	int			i = -1;

	while ((i = bms_next_member(statement->resultRelationRelids, i)) >= 0)
		result = lappend_oid(result, rt_fetch(i, statement->rtable)->relid);
#endif
	return result;
}

/* Does "role" own the database?  Superusers own all. */
static inline bool
coord_owns_database(Oid database, Oid role)
{
#if PG_VERSION_NUM < 160000
	return pg_database_ownercheck(database, role);
#else
	return object_ownercheck(DatabaseRelationId, database, role);
#endif
}

/* Does "role" own the relation? */
static inline bool
coord_owns_relation(Oid relation, Oid role)
{
#if PG_VERSION_NUM < 160000
	return pg_class_ownercheck(relation, role);
#else
	return object_ownercheck(RelationRelationId, relation, role);
#endif
}

/* This process's index in ProcGlobal->allProcs. */
static inline int
coord_my_proc_number(void)
{
#if PG_VERSION_NUM < 170000
	return MyProc->pgprocno;
#else
	return MyProcNumber;
#endif
}

/* Memory for a setting's "extra"; 16 has an allocator for it. */
static inline void *
coord_guc_malloc(size_t size)
{
#if PG_VERSION_NUM < 160000
	return malloc(size);
#else
	return guc_malloc(LOG, size);
#endif
}

/* Split a possibly qualified name; raises a syntax error. */
static inline List *
coord_qualified_name(const char *name)
{
#if PG_VERSION_NUM < 160000
	return stringToQualifiedNameList(name);
#else
	return stringToQualifiedNameList(name, NULL);
#endif
}

/* Number of the running transaction in this process. */
static inline LocalTransactionId
coord_local_transaction(void)
{
#if PG_VERSION_NUM < 170000
	return MyProc->lxid;
#else
	return MyProc->vxid.lxid;
#endif
}

/* A wait event of our own where the server has named ones (17). */
static inline uint32
coord_wait_event(uint32 *slot, const char *name)
{
#if PG_VERSION_NUM < 170000
	return PG_WAIT_EXTENSION;
#else
	if (*slot == 0)
		*slot = WaitEventExtensionNew(name);
	return *slot;
#endif
}

/*
 * Stop waiting for a condition variable.  If this process was signaled
 * meanwhile, hand that on; up to 16 the server itself does.
 */
static inline void
coord_cancel_sleep(ConditionVariable *variable)
{
#if PG_VERSION_NUM < 170000
	ConditionVariableCancelSleep();
#else
	if (ConditionVariableCancelSleep())
		ConditionVariableSignal(variable);
#endif
}

/* Does this session hold a lock in just this mode?  17 can ask for stronger ones. */
static inline bool
coord_lock_held_by_me(const LOCKTAG *tag, LOCKMODE mode)
{
#if PG_VERSION_NUM < 170000
	return LockHeldByMe(tag, mode);
#else
	return LockHeldByMe(tag, mode, false);
#endif
}

/* A hash table with keys of fixed size; 17 copies keys by a function, too. */
static inline dshash_parameters
coord_hash_parameters(size_t key_size, size_t entry_size, int tranche)
{
	dshash_parameters result = {0};

	result.key_size = key_size;
	result.entry_size = entry_size;
	result.compare_function = dshash_memcmp;
	result.hash_function = dshash_memhash;
#if PG_VERSION_NUM >= 170000
	result.copy_function = dshash_memcpy;
#endif
	result.tranche_id = tranche;
	return result;
}

/*
 * Set synchronous_commit for what follows; core keeps by it in what way to wait
 * for synchronous standbys.
 */
static inline void
coord_set_synchronous_commit(int value)
{
	synchronous_commit = value;
	assign_synchronous_commit(value, NULL);
}

/* Delete a row, and wait for whoever is at it; 19 takes options. */
static inline TM_Result
coord_tuple_delete(Relation relation, ItemPointer tid, CommandId command, Snapshot snapshot,
				   TM_FailureData *failure)
{
#if PG_VERSION_NUM < 190000
	return table_tuple_delete(relation, tid, command, snapshot, InvalidSnapshot, true, failure,
							  false);
#else
	return table_tuple_delete(relation, tid, command, 0, snapshot, InvalidSnapshot, true, failure);
#endif
}

/* A new LWLock tranche; 19 takes the name and registers it everywhere. */
static inline int
coord_new_tranche(const char *name)
{
#if PG_VERSION_NUM < 190000
	return LWLockNewTrancheId();
#else
	return LWLockNewTrancheId(name);
#endif
}

/* Make a tranche's name known in this process. */
static inline void
coord_register_tranche(int tranche, const char *name)
{
#if PG_VERSION_NUM < 190000
	LWLockRegisterTranche(tranche, name);
#endif
}

/* 17 knows infinite intervals. */
static inline bool
coord_interval_is_finite(const Interval *interval)
{
#if PG_VERSION_NUM < 170000
	return true;
#else
	return !INTERVAL_NOT_FINITE(interval);
#endif
}

/*
 * Worker roles: from 17 a worker may connect as a role that cannot log in.
 */
#if PG_VERSION_NUM < 170000
#define COORD_WORKER_CONNECT_FLAGS 0
#else
#define COORD_WORKER_CONNECT_FLAGS BGWORKER_BYPASS_ROLELOGINCHECK
#endif

/*
 * Building jsonb.  19 keeps the result in the state; before, the last push
 * returned it.
 */
#if PG_VERSION_NUM < 190000
typedef struct JsonbInState
{
	JsonbParseState *parseState;
	JsonbValue *result;
} JsonbInState;

static inline void
coord_push_jsonb(JsonbInState *state, JsonbIteratorToken token, JsonbValue *value)
{
	state->result = pushJsonbValue(&state->parseState, token, value);
}
#else
static inline void
coord_push_jsonb(JsonbInState *state, JsonbIteratorToken token, JsonbValue *value)
{
	pushJsonbValue(state, token, value);
}
#endif

#endif							/* COORD_COMPAT_H */
