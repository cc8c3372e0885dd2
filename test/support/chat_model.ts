// The embedded model with a chat template.

import { cpSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { tldrDirectory } from './fixtures';

/** Writes an answer, which the embedded model ends with the end-of-text token, after a title. */
export const titles =
  "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}\n" +
  "{% elif m.role == 'assistant' %}{{ m.content }}{{ eos_token }}" +
  "{% elif m.role == 'never' %}{{ raise_exception('no such role') }}" +
  '{% else %}# {{ m.content }}\n{% endif %}{% endfor %}';

/** Fills an empty directory, which it returns. */
export function writeChatModel(directory: string, template: string = titles): string {
  cpSync(tldrDirectory, directory, { recursive: true });
  writeFileSync(join(directory, 'chat_template.jinja'), template);
  return directory;
}
