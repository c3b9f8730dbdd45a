/*-------------------------------------------------------------------------
 *
 * json_object.c
 *	  A jsonb object that grows by one member at a time, and documents around it.
 *
 * The context document of a step holds the results of all steps before.  To make
 * it anew for each call of a chain of ten thousand steps takes most of the time.
 * Here the object of results stays as it is in a buffer of its own: to add a
 * member is to move two or three blocks of memory, and the document is completed
 * around it, so that nothing that is large is copied.
 *
 * The format is that of utils/jsonb.h; see json_from_parts() in json.c.  Numbers
 * and containers are aligned to four bytes, and the padding before them counts as
 * theirs.  When everything behind a point moves by the same distance, the first
 * aligned value takes up what is not a multiple of four, so behind it the distance
 * is one, and no padding changes any more: blocks stay blocks.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "base/json.h"

/* A member, in the order of keys. */
typedef struct Member
{
	uint32		rank;
	uint32		key_length;
	uint32		position;		/* of the value's bytes, in the container */
	uint32		length;			/* of them, without padding */
	JEntry		type;
} Member;

struct JsonObject
{
	MemoryContext context;
	int			count;
	int			size;			/* of members: as many as there can be */
	Member	   *members;
	uint32	   *moved;			/* positions before a member is put in */
	char	   *buffer;
	Size		buffer_size;
	Size		room;			/* before the container, for a document */
	Size		used;			/* the container's bytes */
	Size		keys;			/* of them, of keys */
};

#define FIRST_ROOM 1024

static char *
container(JsonObject *object)
{
	return object->buffer + object->room;
}

/* See that there is room before the container, and for "size" bytes from its start. */
static void
reserve(JsonObject *object, Size room, Size size)
{
	char	   *buffer;

	if (room <= object->room && object->room + size <= object->buffer_size)
		return;
	room = room <= object->room ? object->room : TYPEALIGN(sizeof(JEntry), room * 2);
	object->buffer_size = room + size * 2;
	buffer = MemoryContextAllocHuge(object->context, object->buffer_size);
	memcpy(buffer + room, container(object), object->used);
	pfree(object->buffer);
	object->buffer = buffer;
	object->room = room;
}

static bool
is_aligned(JEntry type)
{
	return type == JENTRY_ISNUMERIC || type == JENTRY_ISCONTAINER;
}

/* Where to put the member of this rank; "found" when it is there. */
static int
find_place(const JsonObject *object, uint32 rank, bool *found)
{
	int			low = 0;
	int			high = object->count;

	/* Steps are mostly finished in the order of their names. */
	if (high > 0 && object->members[high - 1].rank < rank)
		low = high;
	while (low < high)
	{
		int			middle = (low + high) / 2;

		if (object->members[middle].rank < rank)
			low = middle + 1;
		else
			high = middle;
	}
	*found = low < object->count && object->members[low].rank == rank;
	return low;
}

/* The bytes of a value and its type. */
static const void *
value_bytes(const JsonbValue *value, uint32 *length, JEntry *type)
{
	*length = 0;
	switch (value->type)
	{
		case jbvNull:
			*type = JENTRY_ISNULL;
			return NULL;
		case jbvBool:
			*type = value->val.boolean ? JENTRY_ISBOOL_TRUE : JENTRY_ISBOOL_FALSE;
			return NULL;
		case jbvString:
			*type = JENTRY_ISSTRING;
			*length = value->val.string.len;
			return value->val.string.val;
		case jbvNumeric:
			*type = JENTRY_ISNUMERIC;
			*length = VARSIZE_ANY(value->val.numeric);
			return value->val.numeric;
		case jbvBinary:
			*type = JENTRY_ISCONTAINER;
			*length = value->val.binary.len;
			return value->val.binary.data;
		default:
			elog(ERROR, "unexpected jsonb type %d", value->type);
	}
	return NULL;
}

/* Write the entries of all keys from "first_key" on, and of all values. */
static void
write_entries(JsonObject *object, int first_key, Size keys_before)
{
	JEntry	   *entries = (JEntry *) (container(object) + sizeof(uint32));
	Size		base = sizeof(uint32) + 2 * sizeof(JEntry) * object->count;
	Size		end = keys_before;
	int			count = object->count;

	for (int i = first_key; i < count; i++)
	{
		uint32		length = object->members[i].key_length;

		end += length;
		entries[i] = JENTRY_ISSTRING |
			(i % JB_OFFSET_STRIDE == 0 ? (JEntry) end | JENTRY_HAS_OFF : length);
	}
	end = object->keys;
	for (int i = 0; i < count; i++)
	{
		const Member *member = &object->members[i];
		Size		new_end = member->position + member->length - base;
		int			entry = count + i;

		for (Size pad = base + end; pad < member->position; pad++)
			container(object)[pad] = '\0';
		entries[entry] = member->type |
			(entry % JB_OFFSET_STRIDE == 0 ? (JEntry) new_end | JENTRY_HAS_OFF :
			 (JEntry) (new_end - end));
		end = new_end;
	}
	*(uint32 *) container(object) = count | JB_FOBJECT;
}

/* Positions of all values; returns where the container ends. */
static Size
set_positions(JsonObject *object)
{
	Size		at = sizeof(uint32) + 2 * sizeof(JEntry) * object->count + object->keys;

	for (int i = 0; i < object->count; i++)
	{
		if (is_aligned(object->members[i].type))
			at = INTALIGN(at);
		object->members[i].position = at;
		at += object->members[i].length;
	}
	if (at > JENTRY_OFFLENMASK)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("the document for a step is too large"),
				 errdetail("Its results would have %zu bytes; jsonb holds %u.",
						   at, JENTRY_OFFLENMASK)));
	return at;
}

/*
 * The object of those parts that are present, in the current memory context; the
 * parts' places are the ranks of their keys.
 */
JsonObject *
json_object_make(const JsonPart *parts, int count)
{
	JsonObject *object = palloc0(sizeof(JsonObject));
	const void **bytes;
	char	   *to;

	object->context = CurrentMemoryContext;
	object->size = Max(count, 1);
	object->members = palloc_extended(sizeof(Member) * object->size, MCXT_ALLOC_HUGE);
	object->moved = palloc_extended(sizeof(uint32) * object->size, MCXT_ALLOC_HUGE);
	bytes = palloc_extended(sizeof(void *) * object->size, MCXT_ALLOC_HUGE);
	for (int i = 0; i < count; i++)
	{
		Member	   *member = &object->members[object->count];

		if (!parts[i].present)
			continue;
		member->rank = i;
		member->key_length = parts[i].key_length;
		bytes[object->count++] = value_bytes(&parts[i].value, &member->length, &member->type);
		object->keys += member->key_length;
	}
	object->used = set_positions(object);
	object->room = FIRST_ROOM;
	object->buffer_size = FIRST_ROOM + object->used * 2 + FIRST_ROOM;
	object->buffer = palloc_extended(object->buffer_size, MCXT_ALLOC_HUGE);
	to = container(object) + sizeof(uint32) + 2 * sizeof(JEntry) * object->count;
	for (int i = 0; i < object->count; i++)
	{
		const Member *member = &object->members[i];

		memcpy(to, parts[member->rank].key, member->key_length);
		to += member->key_length;
		if (member->length > 0)
			memcpy(container(object) + member->position, bytes[i], member->length);
	}
	write_entries(object, 0, 0);
	pfree(bytes);
	return object;
}

/*
 * Move the values that were in their place before a member was put in at
 * "place", from the last to the first, since all go towards the end.  "moved" are
 * their old positions.
 */
static void
move_values(JsonObject *object, int place, const uint32 *moved)
{
	const Member *members = object->members;
	char	   *start = container(object);
	int			last = object->count - 1;

	while (last >= 0)
	{
		int			first = last;
		uint32		distance;

		if (last == place)
		{
			last--;
			continue;
		}
		distance = members[last].position - moved[last];
		while (first > 0 && first - 1 != place &&
			   members[first - 1].position - moved[first - 1] == distance)
			first--;
		memmove(start + members[first].position, start + moved[first],
				moved[last] + members[last].length - moved[first]);
		last = first - 1;
	}
}

/*
 * Add a member; "rank" is the place of its key among all keys there can be.
 * False, and nothing is changed, when there is one already.
 */
bool
json_object_put(JsonObject *object, uint32 rank, const JsonPart *part)
{
	bool		found;
	int			place = find_place(object, rank, &found);
	const void *bytes;
	uint32	   *moved;
	Size		keys_before = 0;
	Size		entries_before = sizeof(uint32) + 2 * sizeof(JEntry) * object->count;
	Size		at;
	Member	   *member;
	char	   *start;

	if (found)
		return false;
	Assert(object->count < object->size);
	moved = object->moved;
	for (int i = 0; i < object->count; i++)
	{
		if (i < place)
			keys_before += object->members[i].key_length;
		moved[i < place ? i : i + 1] = object->members[i].position;
	}
	memmove(&object->members[place + 1], &object->members[place],
			sizeof(Member) * (object->count - place));
	member = &object->members[place];
	member->rank = rank;
	member->key_length = part->key_length;
	bytes = value_bytes(&part->value, &member->length, &member->type);
	object->count++;
	object->keys += part->key_length;

	at = set_positions(object);
	reserve(object, 0, at);

	start = container(object);
	move_values(object, place, moved);
	memmove(start + entries_before + 2 * sizeof(JEntry) + keys_before + part->key_length,
			start + entries_before + keys_before,
			object->keys - part->key_length - keys_before);
	memmove(start + entries_before + 2 * sizeof(JEntry), start + entries_before, keys_before);
	memcpy(start + entries_before + 2 * sizeof(JEntry) + keys_before, part->key,
		   part->key_length);
	if (member->length > 0)
		memcpy(start + member->position, bytes, member->length);
	object->used = at;

	/* Key entries before the place only move, and keep their index. */
	write_entries(object, place, keys_before);
	return true;
}

/*
 * The document of these parts, of which the one at "place" has the object as its
 * value.  Made around the object in its own buffer, so it is valid until the
 * object changes or the next document is made.
 */
Jsonb *
json_object_document(JsonObject *object, const JsonPart *parts, int count, int place)
{
	Size		keys = 0;
	Size		values = 0;
	Size		lead;
	Size		base;
	Size		at;
	Size		end = 0;
	JEntry	   *entries;
	Jsonb	   *result;
	char	   *start;

	/* At most three bytes of padding before each value. */
	for (int i = 0; i < count; i++)
	{
		uint32		length = 0;
		JEntry		type;

		keys += parts[i].key_length;
		if (i != place)
			(void) value_bytes(&parts[i].value, &length, &type);
		values += length + sizeof(JEntry);
	}
	base = VARHDRSZ + sizeof(uint32) + 2 * sizeof(JEntry) * count;
	if (base + keys + values + object->used > JENTRY_OFFLENMASK)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("the document for a step is too large"),
				 errdetail("It would have %zu bytes; jsonb holds %u.",
						   base + keys + values + object->used, JENTRY_OFFLENMASK)));
	reserve(object, base + keys + values, object->used + values);

	/* How much comes before the object. */
	lead = base + keys;
	for (int i = 0; i < place; i++)
	{
		uint32		length;
		JEntry		type;

		(void) value_bytes(&parts[i].value, &length, &type);
		lead = (is_aligned(type) ? INTALIGN(lead) : lead) + length;
	}
	lead = INTALIGN(lead);

	start = container(object) - lead;
	result = (Jsonb *) start;
	result->root.header = count | JB_FOBJECT;
	entries = result->root.children;
	at = base;
	for (int i = 0; i < count; i++)
	{
		memcpy(start + at, parts[i].key, parts[i].key_length);
		at += parts[i].key_length;
		entries[i] = JENTRY_ISSTRING |
			(i % JB_OFFSET_STRIDE == 0 ? (JEntry) (at - base) | JENTRY_HAS_OFF :
			 parts[i].key_length);
	}
	end = at;
	for (int i = 0; i < count; i++)
	{
		int			entry = count + i;
		JEntry		type = JENTRY_ISCONTAINER;
		uint32		length = object->used;
		const void *bytes = NULL;

		if (i != place)
			bytes = value_bytes(&parts[i].value, &length, &type);
		while (is_aligned(type) && at % sizeof(JEntry) != 0)
			start[at++] = '\0';
		if (length > 0 && i != place)
			memcpy(start + at, bytes, length);
		at += length;
		entries[entry] = type |
			(entry % JB_OFFSET_STRIDE == 0 ? (JEntry) (at - base) | JENTRY_HAS_OFF :
			 (JEntry) (at - end));
		end = at;
	}
	SET_VARSIZE(result, at);
	return result;
}

/* The object as a value, valid until it changes. */
void
json_object_value(JsonObject *object, JsonbValue *value)
{
	value->type = jbvBinary;
	value->val.binary.data = (JsonbContainer *) container(object);
	value->val.binary.len = object->used;
}
