/*-------------------------------------------------------------------------
 *
 * lock_key.c
 *	  Names, modes and their tags in PostgreSQL's lock manager; who may use
 *	  which names.
 *
 * A lock is an advisory lock under a tag of 72 bits of the name's hash and a
 * class that nobody else uses, so it is queued, shown in pg_locks and checked
 * for deadlock like any other, and a user's own pg_advisory_lock() never meets
 * it.  Two names with the same tag would exclude each other needlessly, and
 * nothing worse: the lock manager counts a second hold of the same tag by the
 * same session without waiting.
 *
 * The hash is a cryptographic one: for those of hash tables a name with the same
 * bits as another, which the role may not use, is found in a millisecond.  So
 * the bits stand for the name wherever names are compared often.  Since it takes
 * as long as a lock, each process keeps those of the names it used last.
 *
 * Everybody may use every name, except under the prefixes that coord_admin has
 * closed with coord.grant_use('lock', ..).  They are few and asked for at each
 * call, so each process keeps them until one changes.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "common/cryptohash.h"
#include "common/hashfn.h"
#include "common/sha2.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "base/access.h"
#include "base/check.h"
#include "base/guc.h"
#include "base/query.h"
#include "lock/lock.h"
#include "lock/lock_key.h"

const LOCKMODE lock_kind_modes[] = {
	RowShareLock, RowExclusiveLock, ShareLock, ShareRowExclusiveLock, ExclusiveLock
};

static const char *const kind_names[] = {
	"intent_share", "intent_exclusive", "share", "share_intent_exclusive", "exclusive", "lease"
};

#define LOCK_KINDS (lengthof(lock_kind_modes))

/* Names this process used, by another hash; in static memory. */
typedef struct CachedKey
{
	char		name[CHECK_NAME_MAX + 1];
	LockKey		key;
} CachedKey;

#define CACHED_KEYS 64

static CachedKey cached_keys[CACHED_KEYS];

static void
compute_key(const char *name, int length, LockKey *key)
{
	pg_cryptohash_ctx *context = pg_cryptohash_create(PG_SHA256);
	uint8		digest[PG_SHA256_DIGEST_LENGTH];

	if (context == NULL || pg_cryptohash_init(context) < 0 ||
		pg_cryptohash_update(context, (const uint8 *) name, length) < 0 ||
		pg_cryptohash_final(context, digest, sizeof(digest)) < 0)
	{
		pg_cryptohash_free(context);
		elog(ERROR, "could not compute a hash");
	}
	pg_cryptohash_free(context);
	memcpy(&key->hash, digest, sizeof(key->hash));
	key->more = digest[sizeof(key->hash)];
}

/* The bits of a name; one that is longer than names can be has them as well. */
LockKey
lock_key(const char *name)
{
	int			length = strlen(name);
	CachedKey  *cached = &cached_keys[hash_bytes((const unsigned char *) name, length) % CACHED_KEYS];
	LockKey		key;

	if (length > 0 && strcmp(cached->name, name) == 0)
		return cached->key;
	compute_key(name, length, &key);
	if (length <= CHECK_NAME_MAX)
	{
		memcpy(cached->name, name, length + 1);
		cached->key = key;
	}
	return key;
}

void
lock_tag(LOCKTAG *tag, const LockKey *key, LockSpace space)
{
	uint64		hash = key->hash;
	uint8		more = key->more;

#ifdef COORD_DEBUG_POINTS
	if (guc_debug_hash_bits < 64)
	{
		hash &= (UINT64CONST(1) << guc_debug_hash_bits) - 1;
		more = 0;
	}
#endif
	SET_LOCKTAG_ADVISORY(*tag, MyDatabaseId, (uint32) (hash >> 32), (uint32) hash,
						 space | more);
}

/* The order in which several locks are taken. */
int
lock_compare_tags(const LOCKTAG *a, const LOCKTAG *b)
{
	if (a->locktag_field2 != b->locktag_field2)
		return a->locktag_field2 < b->locktag_field2 ? -1 : 1;
	if (a->locktag_field3 != b->locktag_field3)
		return a->locktag_field3 < b->locktag_field3 ? -1 : 1;
	return (int) a->locktag_field4 - (int) b->locktag_field4;
}

/* The argument "mode"; NULL: exclusive. */
LockKind
lock_kind(FunctionCallInfo fcinfo, int argument)
{
	char	   *mode = check_optional_text(fcinfo, argument);

	if (mode == NULL)
		return KIND_EXCLUSIVE;
	for (int i = LOCK_KINDS - 1; i >= 0; i--)
	{
		if (strcmp(mode, kind_names[i]) == 0)
			return (LockKind) i;
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unknown lock mode \"%s\"", mode),
			 errdetail("A lock is taken in one of five modes, which are written in lower case."),
			 errhint("Modes are exclusive, share, intent_exclusive, intent_share and share_intent_exclusive.")));
	return KIND_EXCLUSIVE;
}

const char *
lock_kind_name(LockKind kind)
{
	return kind_names[kind];
}

/* The argument "scope": is it the session?  NULL: the transaction. */
bool
lock_session_scope(FunctionCallInfo fcinfo, int argument)
{
	char	   *scope = check_optional_text(fcinfo, argument);

	if (scope == NULL || strcmp(scope, "transaction") == 0)
		return false;
	if (strcmp(scope, "session") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown scope \"%s\"", scope),
				 errdetail("A lock is held by the transaction or by the session."),
				 errhint("Scopes are transaction and session.")));
	return true;
}

/* ----------------------------------------------------------------
 *		Who may use which names
 * ----------------------------------------------------------------
 */

typedef struct Prefix
{
	char	   *prefix;
	int			length;
	Oid			role;
} Prefix;

/* This process's copy of the grants, in a context of its own. */
static MemoryContext prefix_context = NULL;
static Prefix *prefixes = NULL;
static int	nprefixes = 0;
static bool prefixes_valid = false;
static uint64 prefixes_changes = 0;
static Oid	prefixes_relid = InvalidOid;

static void
relcache_callback(Datum arg, Oid relid)
{
	if (!OidIsValid(relid) || relid == prefixes_relid)
	{
		prefixes_valid = false;
		prefixes_changes++;
	}
}

/* Make every process read the grants again once this commits. */
void
lock_prefixes_changed(void)
{
	Oid			namespace = get_namespace_oid("coord_internal", false);

	CacheInvalidateRelcacheByRelid(get_relname_relid("use_grant", namespace));
	prefixes_valid = false;
	prefixes_changes++;
}

static void
read_prefixes(void)
{
	static Statement read = {
		"SELECT name, role FROM coord_internal.use_grant WHERE kind = 'lock'", 0, {0}
	};
	static bool registered = false;
	QueryScope	scope;
	uint64		rows;
	uint64		changes;

	if (!registered)
	{
		CacheRegisterRelcacheCallback(relcache_callback, (Datum) 0);
		prefix_context = AllocSetContextCreate(TopMemoryContext, "coord lock prefixes",
											   ALLOCSET_SMALL_SIZES);
		registered = true;
	}

	/* Valid only when all is read, and nothing has changed meanwhile. */
	prefixes_relid = get_relname_relid("use_grant", get_namespace_oid("coord_internal", false));
	changes = prefixes_changes;
	MemoryContextReset(prefix_context);
	nprefixes = 0;
	query_begin(&scope);
	rows = query_run_latest(&read, NULL, NULL, 0);
	prefixes = MemoryContextAlloc(prefix_context, sizeof(Prefix) * Max(rows, 1));
	for (uint64 i = 0; i < rows; i++)
	{
		bool		isnull;

		prefixes[i].prefix = query_text(prefix_context, i, 1);
		prefixes[i].length = strlen(prefixes[i].prefix);
		prefixes[i].role = DatumGetObjectId(query_value(i, 2, &isnull));
	}
	nprefixes = (int) rows;
	query_end(&scope);
	prefixes_valid = changes == prefixes_changes;
}

/*
 * 42501 when the name is under a closed prefix; the longest one that fits
 * decides.
 */
static void
check_use(const char *name)
{
	Oid			user = GetUserId();
	int			longest = -1;
	bool		allowed = true;

	if (!prefixes_valid)
		read_prefixes();
	for (int i = 0; i < nprefixes; i++)
	{
		const Prefix *prefix = &prefixes[i];

		if (prefix->length < longest || strncmp(name, prefix->prefix, prefix->length) != 0)
			continue;
		if (prefix->length > longest)
		{
			longest = prefix->length;
			allowed = access_sees_all(user);
		}
		allowed = allowed || is_member_of_role(user, prefix->role);
	}
	if (!allowed)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for lock name \"%s\"", name),
				 errdetail("Names that begin with \"%.*s\" are reserved for other roles.",
						   longest, name),
				 errhint("A member of coord_admin can SELECT coord.grant_use('lock', ..).")));
}

/*
 * Can this be the name of a lock, or of an owner, as "what" says?  22004, 22023,
 * 42622.
 */
void
lock_check_text(const char *what, const char *text)
{
	if (text == NULL || *text == '\0')
		ereport(ERROR,
				(errcode(text == NULL ? ERRCODE_NULL_VALUE_NOT_ALLOWED :
						 ERRCODE_INVALID_PARAMETER_VALUE),
				 text == NULL ? errmsg("%s must not be null", what) :
				 errmsg("%s must not be empty", what),
				 errdetail("It is 1 to %d bytes long.", CHECK_NAME_MAX),
				 errhint("Say what it is for, or who asks: for example 'invoice/42', 'worker-1'.")));
	if (strlen(text) > CHECK_NAME_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_NAME_TOO_LONG),
				 errmsg("%s is too long", what),
				 errdetail("It has %zu bytes, %d are allowed.", strlen(text), CHECK_NAME_MAX),
				 errhint("Use a shorter one, or a hash of it.")));
}

/* May the current user use this name?  42501; and as lock_check_text(). */
void
lock_check_name(const char *name)
{
	lock_check_text("name", name);
	check_use(name);
}

/* The argument "name", which the current user may use. */
char *
lock_name(FunctionCallInfo fcinfo, int argument)
{
	char	   *name = check_optional_text(fcinfo, argument);

	lock_check_name(name);
	return name;
}
