// The parts that npm run test:stryker mutates one by one, each with the test files that run for it.
// Jest loads all test files of a part for each mutant, so a part has few.

import { operators } from './suites.mjs';

const processes = ['tokenizer_child', 'tokenizer_process', 'tokenizer_thread'];
const text = ['decoder', 'decoder_pattern', 'tokenizer', 'tokenizer_client'];
const generation = [
  'abort',
  'call_order',
  'conversation',
  'generate',
  'generation',
  'model',
  'scheduler',
  'session',
  'session_file',
  'stop',
];
const speculation = ['draft_model', 'prompt_lookup', 'speculative'];
const folders = ['chat', 'explain', 'files'];
const structured = ['grammar/compiler', 'grammar/format', 'tool_calls', 'tool_calls_python', 'tools'];
/** Tests of operators at sizes that are the same to lib/ as those of others. */
const otherSizes = ['attention_window', 'kv_append', 'kv_types', 'large_scores', 'quantized_weights'];
const files = (names) => names.map((name) => `lib/${name}.ts`);

export const parts = {
  template: { mutate: ['lib/template/**/*.ts'], tests: ['chat_templates', 'chat_template_limits'] },
  hub: { mutate: ['lib/hub/**/*.ts', '!lib/hub/index.ts'], tests: ['hub_inspect', 'hub_load', 'hub_faults'] },
  text: {
    mutate: files(text),
    tests: [
      'decoder',
      'decoder_reference',
      'call_messages',
      'tokenizer_messages',
      'tokenizer',
      'tokenizer_process',
      'tokenizer_reference',
      'generate',
      'errors_models',
      'receivers',
    ],
  },
  folders: {
    mutate: files(folders),
    tests: [
      'explain',
      'call_messages',
      'chat_templates',
      'folder_messages',
      'errors_models',
      'tokenizer',
      'checkpoint_errors',
    ],
  },
  generation: {
    mutate: files(generation),
    tests: [
      ...[
        'call_messages',
        'generate',
        'chat',
        'session_prefix',
        'batching',
        'session_order',
        'saved_sessions',
        'kv_cache',
        'stop',
        'abort',
        'errors_models',
        'receivers',
      ],
      ...['fixtures', 'tensor_names'],
    ],
  },
  speculation: { mutate: files(speculation), tests: ['proposers', 'speculative'] },
  calls: {
    mutate: [
      'lib/*.ts',
      '!lib/index.ts',
      ...files([...processes, ...text, ...generation, ...speculation, ...folders, ...structured]).map((f) => `!${f}`),
    ],
    tests: [
      ...operators.filter((name) => !otherSizes.includes(name)),
      ...['messages', 'errors_kernels', 'errors_devices', 'errors_models', 'device_choice', 'receivers', 'threads'],
      ...['native_module', 'generate', 'ceilings', 'options'],
    ],
  },
  structured: { mutate: files(structured), tests: ['grammar', 'tool_calls', 'structured', 'receivers'] },
  processes: {
    mutate: files(processes),
    tests: ['tokenizer_messages', 'tokenizer', 'tokenizer_process', 'forged_tokens'],
    inProcess: false,
  },
  server: {
    mutate: ['examples/http-server/{server,openai}.mjs'],
    tests: ['http_example'],
    inProcess: false,
  },
};
