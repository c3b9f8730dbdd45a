/*-------------------------------------------------------------------------
 *
 * json.c
 *	  Building and reading jsonb with one call per member.
 *
 * A thin layer over PostgreSQL's own functions.  A writer starts zeroed; its
 * memory is the current context's.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/numeric.h"

#include "base/json.h"

static void
push_value(JsonWriter *writer, JsonbIteratorToken token, JsonbValue *value)
{
	coord_push_jsonb(&writer->state, token, value);
}

static void
set_string(JsonbValue *value, const char *text)
{
	value->type = jbvString;
	value->val.string.val = unconstify(char *, text);
	value->val.string.len = strlen(text);
}

void
json_begin_object(JsonWriter *writer)
{
	push_value(writer, WJB_BEGIN_OBJECT, NULL);
}

void
json_end_object(JsonWriter *writer)
{
	push_value(writer, WJB_END_OBJECT, NULL);
}

void
json_begin_array(JsonWriter *writer)
{
	push_value(writer, WJB_BEGIN_ARRAY, NULL);
}

void
json_end_array(JsonWriter *writer)
{
	push_value(writer, WJB_END_ARRAY, NULL);
}

void
json_key(JsonWriter *writer, const char *key)
{
	JsonbValue	value;

	set_string(&value, key);
	push_value(writer, WJB_KEY, &value);
}

/* A member's value: a string, or null for NULL. */
void
json_string(JsonWriter *writer, const char *text)
{
	JsonbValue	value;

	if (text == NULL)
	{
		json_null(writer);
		return;
	}
	set_string(&value, text);
	push_value(writer, WJB_VALUE, &value);
}

void
json_string_element(JsonWriter *writer, const char *text)
{
	JsonbValue	value;

	set_string(&value, text);
	push_value(writer, WJB_ELEM, &value);
}

void
json_integer(JsonWriter *writer, int64 number)
{
	JsonbValue	value;

	value.type = jbvNumeric;
	value.val.numeric = int64_to_numeric(number);
	push_value(writer, WJB_VALUE, &value);
}

void
json_numeric(JsonWriter *writer, Numeric number)
{
	JsonbValue	value;

	value.type = jbvNumeric;
	value.val.numeric = number;
	push_value(writer, WJB_VALUE, &value);
}

void
json_bool(JsonWriter *writer, bool boolean)
{
	JsonbValue	value;

	value.type = jbvBool;
	value.val.boolean = boolean;
	push_value(writer, WJB_VALUE, &value);
}

void
json_null(JsonWriter *writer)
{
	JsonbValue	value;

	value.type = jbvNull;
	push_value(writer, WJB_VALUE, &value);
}

static void
push_jsonb(JsonWriter *writer, JsonbIteratorToken token, Jsonb *jsonb)
{
	JsonbValue	value;

	if (JB_ROOT_IS_SCALAR(jsonb))
		JsonbExtractScalar(&jsonb->root, &value);
	else
		JsonbToJsonbValue(jsonb, &value);
	push_value(writer, token, &value);
}

/* A member's value that is jsonb already; null for NULL. */
void
json_value(JsonWriter *writer, Jsonb *jsonb)
{
	if (jsonb == NULL)
		json_null(writer);
	else
		push_jsonb(writer, WJB_VALUE, jsonb);
}

void
json_element(JsonWriter *writer, Jsonb *jsonb)
{
	push_jsonb(writer, WJB_ELEM, jsonb);
}

/* A member's value as an iterator or json_get() returned it. */
void
json_member(JsonWriter *writer, JsonbValue *value)
{
	push_value(writer, WJB_VALUE, value);
}

/* The finished document, in the current memory context. */
Jsonb *
json_finish(JsonWriter *writer)
{
	return JsonbValueToJsonb(writer->state.result);
}

/* A member of an object, NULL when it is absent. */
JsonbValue *
json_get(Jsonb *object, const char *key, JsonbValue *result)
{
	return getKeyJsonValueFromContainer(&object->root, key, strlen(key), result);
}

/*
 * A member as text: strings as they are, other scalars as JSON writes them,
 * NULL for an absent member, null, arrays and objects.
 */
char *
json_get_text(Jsonb *object, const char *key)
{
	JsonbValue	value;

	if (json_get(object, key, &value) == NULL)
		return NULL;
	switch (value.type)
	{
		case jbvString:
			return pnstrdup(value.val.string.val, value.val.string.len);
		case jbvNumeric:
			return DatumGetCString(DirectFunctionCall1(numeric_out,
													   NumericGetDatum(value.val.numeric)));
		case jbvBool:
			return pstrdup(value.val.boolean ? "true" : "false");
		default:
			return NULL;
	}
}

bool
json_is_object(Jsonb *value)
{
	return JB_ROOT_IS_OBJECT(value);
}

/* ----------------------------------------------------------------
 *		Objects written at once
 *
 * The context document of a step is made for every call, and holds the results
 * of all steps before.  PostgreSQL's writer takes every member apart, sorts and
 * copies it twice, which for a chain of ten thousand steps is most of the time.
 * Here the parts are in order already, and nested documents are copied as they
 * are.  The format is that of utils/jsonb.h: the header, an entry for each key,
 * an entry for each value, the keys' bytes, the values' bytes; numbers and
 * containers are aligned to four bytes, padding counting as theirs; every
 * JB_OFFSET_STRIDE-th entry holds its end's offset instead of its length.
 * ----------------------------------------------------------------
 */

/* For qsort: jsonb's order of keys. */
int
json_compare_parts(const void *a, const void *b)
{
	const JsonPart *x = a;
	const JsonPart *y = b;

	if (x->key_length != y->key_length)
		return x->key_length - y->key_length;
	return memcmp(x->key, y->key, x->key_length);
}

void
json_part_key(JsonPart *part, const char *key)
{
	part->key = key;
	part->key_length = strlen(key);
}

/* A string, null for NULL; neither key nor value is copied. */
void
json_part_string(JsonPart *part, const char *key, const char *value)
{
	json_part_key(part, key);
	part->present = true;
	if (value == NULL)
		part->value.type = jbvNull;
	else
		set_string(&part->value, value);
}

void
json_part_integer(JsonPart *part, const char *key, int64 value)
{
	json_part_key(part, key);
	part->present = true;
	part->value.type = jbvNumeric;
	part->value.val.numeric = int64_to_numeric(value);
}

/* A document, null for NULL; it is not copied. */
void
json_part_jsonb(JsonPart *part, const char *key, Jsonb *value)
{
	json_part_key(part, key);
	part->present = true;
	if (value == NULL)
		part->value.type = jbvNull;
	else if (JB_ROOT_IS_SCALAR(value))
		JsonbExtractScalar(&value->root, &part->value);
	else
		JsonbToJsonbValue(value, &part->value);
}

static Size
part_size(const JsonPart *part)
{
	Size		size = part->key_length + 2 * sizeof(JEntry) + 3;

	switch (part->value.type)
	{
		case jbvString:
			return size + part->value.val.string.len;
		case jbvNumeric:
			return size + VARSIZE_ANY(part->value.val.numeric);
		case jbvBinary:
			return size + part->value.val.binary.len;
		default:
			return size;
	}
}

/* Copy with padding to four bytes before; the new end. */
static char *
append_aligned(const char *start, char *to, const void *data, Size length)
{
	while ((to - start) % sizeof(JEntry) != 0)
		*to++ = '\0';
	memcpy(to, data, length);
	return to + length;
}

/* Append a value's bytes; returns the new end and sets its type. */
static char *
append_part(const JsonPart *part, const char *start, char *to, JEntry *type)
{
	const JsonbValue *value = &part->value;

	switch (value->type)
	{
		case jbvNull:
			*type = JENTRY_ISNULL;
			return to;
		case jbvBool:
			*type = value->val.boolean ? JENTRY_ISBOOL_TRUE : JENTRY_ISBOOL_FALSE;
			return to;
		case jbvString:
			*type = JENTRY_ISSTRING;
			memcpy(to, value->val.string.val, value->val.string.len);
			return to + value->val.string.len;
		case jbvNumeric:
			*type = JENTRY_ISNUMERIC;
			return append_aligned(start, to, value->val.numeric,
								  VARSIZE_ANY(value->val.numeric));
		case jbvBinary:
			*type = JENTRY_ISCONTAINER;
			return append_aligned(start, to, value->val.binary.data,
								  value->val.binary.len);
		default:
			elog(ERROR, "unexpected jsonb type %d", value->type);
	}
	return to;
}

/*
 * The object of those parts that are present, in the current memory context.
 */
Jsonb *
json_from_parts(const JsonPart *parts, int count)
{
	Size		size = VARHDRSZ + sizeof(uint32);
	int			present = 0;
	int			entry = 0;
	Jsonb	   *result;
	JEntry	   *entries;
	char	   *start;
	char	   *base;
	char	   *to;

	for (int i = 0; i < count; i++)
	{
		if (!parts[i].present)
			continue;
		size += part_size(&parts[i]);
		present++;
	}
	if (size > JENTRY_OFFLENMASK)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("the document for a step is too large"),
				 errdetail("It would have %zu bytes; jsonb holds %u.",
						   size, JENTRY_OFFLENMASK)));

	result = palloc(size);
	start = (char *) result;
	result->root.header = present | JB_FOBJECT;
	entries = result->root.children;
	base = to = (char *) &entries[2 * present];
	for (int i = 0; i < count; i++)
	{
		if (!parts[i].present)
			continue;
		memcpy(to, parts[i].key, parts[i].key_length);
		to += parts[i].key_length;
		entries[entry] = JENTRY_ISSTRING |
			(entry % JB_OFFSET_STRIDE == 0 ?
			 (JEntry) (to - base) | JENTRY_HAS_OFF : parts[i].key_length);
		entry++;
	}
	for (int i = 0; i < count; i++)
	{
		char	   *before = to;
		JEntry		type;

		if (!parts[i].present)
			continue;
		to = append_part(&parts[i], start, to, &type);
		entries[entry] = type |
			(entry % JB_OFFSET_STRIDE == 0 ?
			 (JEntry) (to - base) | JENTRY_HAS_OFF : (JEntry) (to - before));
		entry++;
	}
	SET_VARSIZE(result, to - start);
	return result;
}
