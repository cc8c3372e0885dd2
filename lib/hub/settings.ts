import { readFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { invalidArgument } from '../errors';

/** What the environment says about the hub. The variables are those of Python's huggingface_hub. */
export interface HubSettings {
  /** HF_ENDPOINT, without a slash at its end. */
  endpoint: string;
  /** HF_TOKEN, or the token that `hf auth login` wrote. */
  token: string | undefined;
  /** HF_HUB_OFFLINE. */
  offline: boolean;
  /** HF_HUB_CACHE, or `hub` in HF_HOME. */
  cache: string;
  /** HF_HUB_DOWNLOAD_TIMEOUT: how long a server may send nothing. */
  timeoutMs: number;
}

const DEFAULT_ENDPOINT = 'https://huggingface.co';
const DEFAULT_TIMEOUT_SECONDS = 10;

/** Reads the environment at each call, so that a program can change it. */
export async function hubSettings(): Promise<HubSettings> {
  const { env } = process;
  const homes = env.XDG_CACHE_HOME || join(homedir(), '.cache');
  const home = expandHome(env.HF_HOME || join(homes, 'huggingface'));
  const cache = env.HF_HUB_CACHE || env.HUGGINGFACE_HUB_CACHE || join(home, 'hub');
  const seconds = Number(env.HF_HUB_DOWNLOAD_TIMEOUT || DEFAULT_TIMEOUT_SECONDS);
  if (!(seconds > 0)) {
    throw invalidArgument('HF_HUB_DOWNLOAD_TIMEOUT must be a number of seconds above 0');
  }
  return {
    endpoint: checkEndpoint(env.HF_ENDPOINT || DEFAULT_ENDPOINT),
    token: await findToken(env.HF_TOKEN_PATH || join(home, 'token')),
    offline: /^(1|on|yes|true)$/i.test(env.HF_HUB_OFFLINE ?? ''),
    cache: expandHome(cache),
    timeoutMs: 1000 * seconds,
  };
}

function expandHome(path: string): string {
  return path.replace(/^~(?=$|[/\\])/, homedir());
}

function checkEndpoint(endpoint: string): string {
  let url: URL;
  try {
    url = new URL(endpoint);
  } catch {
    throw invalidArgument('HF_ENDPOINT must be a URL, such as https://huggingface.co');
  }
  // The message does not quote the value, which may have a password.
  if (!/^https?:$/.test(url.protocol) || url.username !== '' || url.password !== '') {
    throw invalidArgument('HF_ENDPOINT must be an http or https URL without a user name');
  }
  return endpoint.replace(/\/+$/, '');
}

async function findToken(file: string): Promise<string | undefined> {
  const { HF_TOKEN, HUGGING_FACE_HUB_TOKEN } = process.env;
  const fromFile = () => readFile(expandHome(file), 'utf8').catch(() => '');
  const token = (HF_TOKEN || HUGGING_FACE_HUB_TOKEN || (await fromFile())).trim();
  // fetch would quote an invalid header in its error.
  if (!/^[\x21-\x7e]*$/.test(token)) {
    throw invalidArgument(
      'the access token of the hub (HF_TOKEN, or the file that `hf auth login` writes) has ' +
        'characters that a token cannot have',
    );
  }
  return token === '' ? undefined : token;
}
