/*-------------------------------------------------------------------------
 *
 * gid.c
 *	  Names of prepared transactions.
 *
 *	  coord:<cluster>:<database>:<incarnation>:<gtid>:<i>/<n>:<server>.<xid>
 *
 * The first two say whose they are; the incarnation, which run of history decided
 * about them; i of n, how many there must be.  The last pair is the next
 * participant of the ring, i + 1 or 1, and its transaction id: should the decision
 * be lost with a coordinator's failover, and one participant have committed, then
 * the one before it that is still prepared knows of it and can ask
 * pg_xact_status().  If some are prepared and some are not, there is one that is
 * prepared and whose next is not, so the ring always finds it.
 *
 * All can be read by everybody in pg_prepared_xacts: there is nothing secret in it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "twophase/gid.h"

#define UUID_DIGITS (2 * UUID_LEN)

/* "coord:<cluster>:"; "buffer" has room for GID_SIZE. */
void
gid_prefix(char *buffer, const pg_uuid_t *cluster)
{
	char		digits[UUID_DIGITS + 1];

	for (int i = 0; i < UUID_LEN; i++)
		snprintf(digits + 2 * i, 3, "%02x", cluster->data[i]);
	snprintf(buffer, GID_SIZE, "coord:%s:", digits);
}

/* The name's text; "buffer" has room for GID_SIZE. */
void
gid_write(char *buffer, const Gid *gid)
{
	char		prefix[GID_SIZE];

	gid_prefix(prefix, &gid->cluster);
	snprintf(buffer, GID_SIZE, "%s%u:%d:" INT64_FORMAT ":%d/%d:%u." UINT64_FORMAT, prefix,
			 gid->database, gid->incarnation, gid->gtid, gid->number, gid->count,
			 gid->next_server, gid->next_xid);
}

static int
hex_value(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* A number, and the character behind it. */
static bool
read_number(const char **p, uint64 *value, char end)
{
	const char *start = *p;

	*value = 0;
	while (**p >= '0' && **p <= '9' && *p - start < 20)
		*value = *value * 10 + (*(*p)++ - '0');
	if (*p == start || **p != end)
		return false;
	(*p)++;
	return true;
}

/* False: it is not one of these names. */
bool
gid_read(const char *text, Gid *gid)
{
	uint64		values[7];
	static const char ends[] = {':', ':', ':', '/', ':', '.', '\0'};
	char		again[GID_SIZE];
	const char *p = text;

	if (strlen(text) < 7 + UUID_DIGITS || strncmp(p, "coord:", 6) != 0)
		return false;
	p += 6;
	for (int i = 0; i < UUID_LEN; i++, p += 2)
	{
		int			high = hex_value(p[0]);
		int			low = hex_value(p[1]);

		if (high < 0 || low < 0)
			return false;
		gid->cluster.data[i] = (unsigned char) (high * 16 + low);
	}
	if (*p++ != ':')
		return false;
	for (int i = 0; i < lengthof(values); i++)
	{
		if (!read_number(&p, &values[i], ends[i]))
			return false;
	}
	gid->database = (Oid) values[0];
	gid->incarnation = (int) values[1];
	gid->gtid = (int64) values[2];
	gid->number = (int) values[3];
	gid->count = (int) values[4];
	gid->next_server = (Oid) values[5];
	gid->next_xid = values[6];

	/* Only what we would write ourselves: no overflow, no leading zeros. */
	gid_write(again, gid);
	return strcmp(again, text) == 0 && gid->number >= 1 && gid->number <= gid->count;
}
