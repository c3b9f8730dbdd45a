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
