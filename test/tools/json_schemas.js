// JSON schemas of many kinds, drawn at random, for the tests of structured output. Every one can be
// satisfied, and a text that satisfies it has a bounded number of characters, except for the depth of
// recursive ones, which ends by chance.

/** A generator of integers below `n` (xorshift32). */
function randomIntegers(seed) {
  let state = (seed * 2654435761) >>> 0 || 1;
  return (n) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    state >>>= 0;
    return state % n;
  };
}

const PATTERNS = [
  '^[a-z]{2,8}$',
  '^[A-Z][a-z]{1,8}(-[0-9]{1,3})?$',
  '^\\d{4}-\\d{2}$',
  '^(red|green|blue)( (light|dark))?$',
  '^#[0-9a-f]{6}$',
  '^[\\u00e0-\\u00ff]{1,5}$',
  '^[^"\\\\]{1,6}$',
  '^v\\d{1,3}\\.\\d{1,2}$',
];
const NAMES = ['name', 'count', 'größe', '名前', 'a b', 'with"quote', 'x_1', 'café', 'emoji🙂', 'back\\slash'];
const VALUES = ['red', 'großartig', '日本', '🙂', 'line\nbreak', '', 'a"b', '\\', 17, -0.5, 1e21, true, false, null];
const FORMATS = ['date', 'time', 'date-time', 'ipv4', 'uuid'];

/** `count` schemas as { kind, schema }. The same seed gives the same ones. */
function jsonSchemas(count, seed = 1) {
  const below = randomIntegers(seed);
  const pick = (list) => list[below(list.length)];
  const some = (list, most) => {
    const rest = [...list];
    return Array.from({ length: 1 + below(most) }, () => rest.splice(below(rest.length), 1)[0]);
  };

  const scalars = {
    boolean: () => ({ type: 'boolean' }),
    null: () => ({ type: 'null' }),
    enum: () => ({ enum: some(VALUES, 5) }),
    const: () => ({ const: pick([...VALUES, [1, 'two'], { a: 'b' }]) }),
    integer: () => {
      const minimum = below(2000) - 1000;
      return { type: 'integer', minimum, maximum: minimum + below(300) };
    },
    'exclusive integer': () => ({ type: 'integer', exclusiveMinimum: -5, exclusiveMaximum: below(90) }),
    'multiple of': () => ({ type: 'integer', multipleOf: 2 + below(9), minimum: 0, maximum: 500 }),
    number: () => {
      const minimum = below(100) / 8 - 5;
      return { type: 'number', minimum, maximum: minimum + below(50) / 4 };
    },
    string: () => {
      const minLength = below(4);
      return { type: 'string', minLength, maxLength: minLength + below(12) };
    },
    pattern: () => ({ type: 'string', pattern: pick(PATTERNS) }),
    format: () => ({ type: 'string', format: pick(FORMATS) }),
    'list of types': () => ({ type: ['integer', 'null', 'boolean'], minimum: 0, maximum: 20 }),
  };
  const value = (depth) =>
    depth > 0 && below(2) ? pick(Object.values(compound))(depth - 1) : pick(Object.values(scalars))();
  const object = (depth) => {
    const names = some(NAMES, 4);
    const properties = Object.fromEntries(names.map((name) => [name, value(depth)]));
    return { type: 'object', properties, required: names.filter(() => below(2)), additionalProperties: false };
  };
  const compound = {
    object,
    array: (depth) => {
      const minItems = below(3);
      return { type: 'array', items: value(depth), minItems, maxItems: minItems + below(3) };
    },
    tuple: (depth) => ({ type: 'array', prefixItems: [value(depth), value(0)], items: false, minItems: 2 }),
    anyOf: (depth) => ({ anyOf: [value(depth), object(depth), { type: 'null' }] }),
    allOf: () => ({
      allOf: [
        { type: 'object', properties: { a: { type: 'integer', minimum: 0 } }, required: ['a'] },
        { type: 'object', properties: { a: { maximum: 50 }, b: { type: 'boolean' } }, additionalProperties: false },
      ],
    }),
    'names by pattern': () => ({
      type: 'object',
      patternProperties: { '^[a-c]{1,2}$': { type: 'integer', minimum: 0, maximum: 9 } },
      additionalProperties: false,
    }),
  };
  const roots = {
    ref: () => ({
      type: 'object',
      properties: { from: { $ref: '#/$defs/value' }, to: { $ref: '#/$defs/value' } },
      required: ['from', 'to'],
      additionalProperties: false,
      $defs: { value: value(1) },
    }),
    'recursive list': () => ({
      $ref: '#/$defs/node',
      $defs: {
        node: {
          type: 'object',
          properties: { value: value(0), next: { anyOf: [{ type: 'null' }, { $ref: '#/$defs/node' }] } },
          required: ['value', 'next'],
          additionalProperties: false,
        },
      },
    }),
    'recursive tree': () => ({
      type: 'object',
      properties: {
        name: { type: 'string', maxLength: 6 },
        children: { type: 'array', items: { $ref: '#' }, maxItems: 1 },
      },
      required: ['name'],
      additionalProperties: false,
    }),
  };
  const kinds = [
    ...Object.entries(scalars),
    ...Object.entries(compound).map(([kind, make]) => [kind, () => make(2)]),
    ...Object.entries(roots),
  ];
  return Array.from({ length: count }, (_, i) => {
    const [kind, make] = kinds[i % kinds.length];
    return { kind, schema: make() };
  });
}

module.exports = { jsonSchemas, randomIntegers };
