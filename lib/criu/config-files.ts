/**
 * Reads the configuration files of a criu, which criu reads before its command line (criu/config.c):
 * /etc/criu/default.conf and $HOME/.criu/default.conf, unless --no-default-config or --config is on the command line;
 * then the file that CRIU_CONFIG_FILE names; then the file of --config. Every line is an option without its dashes,
 * with its value if it has one; `#` begins a comment.
 *
 * A file that cannot be read here, such as a pipe, is ignored. If it asks to leave the tasks running, the dump looks
 * like one that failed, and is taken back: the process runs on in any case.
 */
import { closeSync, fstatSync, readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { openRegularFile } from '../kernel/own-file.ts'
import { environmentOf } from '../kernel/process.ts'

/** How a criu was started. */
interface CriuStart {
  environment: NodeJS.ProcessEnv
  /** The path of its root directory in our mount namespace. */
  root: string
  /** The directory in which it was started, as far as that is known. */
  directory: string
}

/** How a criu that runs was started. It has changed its directory since, so PWD is taken, as its shell has set it. */
export function startOf(pid: number): CriuStart {
  const environment = environmentOf(pid)
  return { environment, root: `/proc/${pid}/root`, directory: environment.PWD ?? '/' }
}

/** How a criu is started by us. */
export function ownStart(): CriuStart {
  return { environment: process.env, root: '/', directory: process.cwd() }
}

const DEFAULT = 'criu/default.conf'
/** Bytes: larger files are not read. */
const LARGEST = 2 ** 20

/** The options in the configuration files of a criu with this command line, as words of a command line. */
export function configuredOptions(words: readonly string[], { environment, root, directory }: CriuStart): string[] {
  const { HOME, CRIU_CONFIG_FILE } = environment
  const named = configOf(words)
  const defaults = named === undefined && !words.includes('--no-default-config')
  const files = [...(defaults ? [`/etc/${DEFAULT}`, HOME && `${HOME}/.${DEFAULT}`] : []), CRIU_CONFIG_FILE, named]
  return files.flatMap((file) => (file ? optionsIn(read(join(root, resolve(directory, file)))) : []))
}

/** The value of --config; the last one counts. criu looks for it before getopt, and so only by its whole name. */
function configOf(words: readonly string[]): string | undefined {
  return words
    .map((word, at) => (word === '--config' ? words[at + 1] : /--config=(.*)$/s.exec(word)?.[1]))
    .findLast((file) => file !== undefined)
}

function read(path: string): string {
  try {
    const file = openRegularFile(path)
    try {
      return fstatSync(file).size <= LARGEST ? readFileSync(file, 'utf8') : ''
    } finally {
      closeSync(file)
    }
  } catch {
    return ''
  }
}

/** The words of a configuration file. Pure. */
export function optionsIn(text: string): string[] {
  return text.split('\n').flatMap((line) => {
    const words = [...line.matchAll(/"((?:\\"|[^"])*)"|(\S+)/g)].map(([, quoted, plain = '']) => quoted ?? plain)
    const comment = words.findIndex((word) => word.startsWith('#'))
    const [option, ...values] = comment < 0 ? words : words.slice(0, comment)
    return option === undefined ? [] : [`--${option}`, ...values]
  })
}
