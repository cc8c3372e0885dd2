import type { ChatMessage } from './chat';
import { checkObject, invalid, invalidArgument } from './errors';
import type { ResponseFormat } from './grammar/format';
import { readOptions } from './options';
import { forcedCalls, ToolCallParser, toolCallFormat } from './tool_calls';

/**
 * Whether the model calls functions. `auto`: if it wants to. `none`: what looks like a call is text.
 * `required`: it must call one or more. `{ name }`: it must call this one.
 */
export type ToolChoice =
  | 'auto'
  | 'none'
  | 'required'
  | {
      /** Name of a function of `tools`. */
      name: string;
    };

/** How tools shape a generation. */
export interface ToolUse {
  /** Takes calls out of the text. Undefined if no call can occur. */
  parser?: ToolCallParser;
  /** Makes the model call a function. */
  format?: ResponseFormat;
}

interface ToolRequest {
  /** The functions: `{ type: 'function', function: { name, parameters } }`, or only the inner part. */
  tools: readonly object[] | undefined;
  toolChoice: ToolChoice | undefined;
  /** The format that the caller wants. JSON is never a call. */
  responseFormat: ResponseFormat | undefined;
  /** Source of the chat template, or null. */
  template: string | null;
}

/** Checks the choice of tools. Throws ERR_INVALID_ARGUMENT. */
export function resolveTools(request: ToolRequest): ToolUse {
  const { tools = [], toolChoice = 'auto', responseFormat, template } = request;
  if (!Array.isArray(tools)) throw invalid('tools', 'an array', tools);
  checkChoice(toolChoice);
  if (request.toolChoice !== undefined && tools.length === 0) {
    throw invalidArgument('toolChoice requires tools: omit toolChoice');
  }
  const functions = tools.map(readFunction);
  const names = functions.flatMap(({ name }) => (typeof name === 'string' ? [name] : []));
  if (toolChoice === 'auto') {
    const format = template === null ? undefined : toolCallFormat(template);
    const isJson = responseFormat?.type === 'json_object' || responseFormat?.type === 'json_schema';
    const canCall = names.length > 0 && !isJson && format !== undefined;
    return canCall ? { parser: new ToolCallParser(format, names) } : {};
  }
  if (toolChoice === 'none') return {};
  if (responseFormat !== undefined) {
    throw invalidArgument(
      'toolChoice cannot demand a call beside responseFormat: omit one of them',
    );
  }
  const wanted = toolChoice === 'required' ? names : [toolChoice.name];
  const missing = wanted.find((name) => !names.includes(name));
  if (missing !== undefined || wanted.length === 0) {
    throw invalid('toolChoice.name', 'the name of a function of tools', missing);
  }
  const callable = functions.filter(({ name }) => wanted.includes(name as string));
  return {
    parser: new ToolCallParser(forcedCalls, wanted),
    format: { type: 'json_schema', schema: schemaOfCalls(callable, toolChoice !== 'required') },
  };
}

/**
 * Messages for a chat template, which writes the arguments of a call as JSON. They are objects there,
 * and text in the OpenAI API and in the results of a generation.
 */
export function withParsedArguments(messages: readonly ChatMessage[]): ChatMessage[] {
  const parsed = (call: object): object => {
    const called = (call as { function?: { arguments?: unknown } } | null)?.function;
    if (typeof called?.arguments !== 'string') return call;
    try {
      return { ...call, function: { ...called, arguments: JSON.parse(called.arguments) } };
    } catch {
      return call; // no JSON: the template sees the text
    }
  };
  return messages.map((message) => {
    const { tool_calls: calls } = message;
    return Array.isArray(calls) ? { ...message, tool_calls: calls.map(parsed) } : message;
  });
}

function checkChoice(choice: unknown): void {
  if (choice === 'auto' || choice === 'none' || choice === 'required') return;
  const expected = "'auto', 'none', 'required' or { name }";
  if (typeof choice !== 'object' || choice === null || Array.isArray(choice)) {
    throw invalid('toolChoice', expected, choice);
  }
  const { name } = readOptions('toolChoice', choice as { name?: unknown }, { name: true });
  if (typeof name !== 'string') throw invalid('toolChoice.name', 'a string', name);
}

interface ToolFunction {
  name?: unknown;
  parameters?: unknown;
}

function readFunction(tool: object): ToolFunction {
  checkObject('each of tools', tool);
  const { function: inner } = tool as { function?: ToolFunction };
  return typeof inner === 'object' && inner !== null ? inner : (tool as ToolFunction);
}

/** The schema of an array of calls. */
function schemaOfCalls(functions: readonly ToolFunction[], isSingle: boolean) {
  const calls = functions.map(({ name, parameters }, i) => ({
    type: 'object',
    properties: {
      name: { const: name },
      arguments: moveRefs(objectSchema(parameters), `#/items/anyOf/${i}/properties/arguments`),
    },
    required: ['name', 'arguments'],
    additionalProperties: false,
  }));
  const maxItems = isSingle ? { maxItems: 1 } : {};
  return { type: 'array', items: { anyOf: calls }, minItems: 1, ...maxItems };
}

/** The parameters of a function as a schema that allows objects only, because arguments are one. */
function objectSchema(parameters: unknown): object {
  const schema = parameters ?? {};
  checkObject('the parameters of each of tools', schema);
  const { type = 'object' } = schema as { type?: unknown };
  if (![type].flat().includes('object')) {
    throw invalid('the type of the parameters of each of tools', "'object'", type);
  }
  return { ...(schema as object), type: 'object' };
}

// Values of these keywords are data, which has no references.
const DATA_KEYWORDS: ReadonlySet<string> = new Set(['const', 'enum', 'default', 'examples']);
// Values of these keywords have names instead of keywords.
const MAP_KEYWORDS: ReadonlySet<string> = new Set([
  'properties',
  'patternProperties',
  '$defs',
  'definitions',
  'dependentSchemas',
]);
// The grammar library accepts no deeper JSON.
const MAX_DEPTH = 128;

/** A copy of a schema, or of a map of schemas, that becomes a part of another one, at `path`. */
function moveRefs(value: unknown, path: string, depth = 0, isMap = false): unknown {
  if (typeof value !== 'object' || value === null) return value;
  if (depth === MAX_DEPTH) {
    throw invalidArgument(`the parameters of a tool are nested more than ${MAX_DEPTH} levels deep`);
  }
  if (Array.isArray(value)) return value.map((item) => moveRefs(item, path, depth + 1));
  const entries = Object.entries(value).map(([key, item]) => {
    if (isMap) return [key, moveRefs(item, path, depth + 1)];
    if (DATA_KEYWORDS.has(key)) return [key, item];
    const isRef = key === '$ref' && typeof item === 'string' && item.startsWith('#');
    if (isRef) return [key, path + item.slice(1)];
    return [key, moveRefs(item, path, depth + 1, MAP_KEYWORDS.has(key))];
  });
  return Object.fromEntries(entries);
}
