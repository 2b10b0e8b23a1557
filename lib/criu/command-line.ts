/** Reads from its command line what a criu does that another program started. */
import { readdirSync, realpathSync } from 'node:fs'
import { isAbsolute, normalize, resolve } from 'node:path'
import { commandName } from '../command-name.ts'
import { Fault } from '../fault.ts'
import { linkOf } from '../kernel/loopback.ts'
import { commandLine } from '../kernel/process.ts'
import { configuredOptions, startOf } from './config-files.ts'
import { leavingOption } from './run.ts'

export interface CriuCommand {
  pid: number
  action: 'pre-dump' | 'dump'
  /** The root of the process tree, in the pid namespace of that criu. */
  tree: number
  /** The absolute path of its images directory. */
  directory: string
  /** The images directory as it was typed: `criu --remote` names a dump by it. */
  images: string
  /**
   * The directory of the dump before (`--prev-images-dir`): criu compares start times with it, as a number may be
   * reused.
   */
  before: string | undefined
  /** It has `--stream` for images and `--page-server` for pages on its command line. */
  splits: boolean
  /** The tasks stay after the dump, running or stopped: by an option on its command line or in a configuration file. */
  leaves: boolean
}

/** The options with a value that are read here, short and long (criu/config.c, 4.1.1). */
const TREE = ['-t', '--tree'] as const
const IMAGES = ['-D', '--images-dir'] as const
const WORK = ['-W', '--work-dir'] as const
const PREVIOUS = ['--prev-images-dir', '--prev-images-dir'] as const
/** Options whose value is a free name, which may be the word of an action. */
const NAMED = /^(-[tDWoLr]|--(tree|images-dir|work-dir|prev-images-dir|log-file|libdir|root|pidfile|action-script))$/

/** The dump of the process with this number; undefined where it is no criu that dumps. */
export function readCriuCommand(pid: number): CriuCommand | undefined {
  const words = commandLine(pid)
  const isAction = (word: string): boolean => word === 'dump' || word === 'pre-dump'
  const at = words.findIndex((word, at) => isAction(word) && !NAMED.test(words[at - 1] ?? ''))
  const tree = Number(optionOf(words, TREE))
  if (at < 1 || !Number.isSafeInteger(tree) || tree < 1) return undefined
  const images = optionOf(words, IMAGES)
  const directory = imagesDirectoryOf(pid, images, optionOf(words, WORK) !== undefined)
  if (directory === undefined) return undefined
  const has = (option: RegExp): boolean => words.some((word) => option.test(word))
  const splits = has(/^--stre/) && has(/^--page-s/)
  const leaves = [words, configuredOptions(words, startOf(pid))].some((options) => leavingOption(options) !== undefined)
  const action = words[at] as CriuCommand['action']
  // It is relative to the images directory (criu/image.c, 4.1.1).
  const previous = optionOf(words, PREVIOUS)
  const before = previous && withoutLinks(resolve(directory, previous))
  return { pid, action, tree, directory, images: images ?? '.', before, splits, leaves }
}

/**
 * `REFUSED` for a dump by `--stream` of only what changed since another one, as CRIU 4.3 can do: the target has no
 * earlier pages.
 */
export function incrementalFault(command: CriuCommand | undefined): Fault | undefined {
  if (command?.before === undefined || command.splits) return undefined
  return new Fault('REFUSED', 'criu dumps with --prev-images-dir: pages of the dump before would be missing', {
    hint:
      `dump without it; for rounds before a dump: ${commandName('pre-copy')}, or ${commandName('proxy')} ` +
      `--page-server-port`,
  })
}

/** The `-D` of a criu that restores, as it was typed; undefined where the process is none. */
export function restoredFrom(pid: number): string | undefined {
  const words = commandLine(pid)
  return words.indexOf('restore') < 1 ? undefined : (optionOf(words, IMAGES) ?? '.')
}

/** getopt accepts an unambiguous prefix of a long option: for these options two dashes and two letters at least. */
const LEAST_NAME = 4

/** The value of an option in any spelling that getopt accepts; the last one counts. */
function optionOf(words: readonly string[], [short, long]: readonly [string, string]): string | undefined {
  return words
    .map((word, at) => {
      const [name = '', ...value] = word.split('=')
      const isLong = name.length >= LEAST_NAME && long.startsWith(name)
      if (isLong && value.length > 0) return value.join('=')
      if (isLong || word === short) return words[at + 1]
      return word.startsWith(short) && !word.startsWith('--') ? word.slice(short.length) : undefined
    })
    .findLast((value) => value !== undefined)
}

/**
 * The absolute path of the images directory. criu changes into its work directory, which is the images directory unless
 * `-W` names another one, and keeps both open (criu/crtools.c, 4.1.1).
 */
function imagesDirectoryOf(pid: number, images: string | undefined, hasWorkDirectory: boolean): string | undefined {
  try {
    if (images !== undefined && isAbsolute(images)) return withoutLinks(images)
    if (!hasWorkDirectory) return linkOf(`/proc/${pid}/cwd`)
    const end = normalize(images ?? '.').replace(/^(\.\.?\/)+|\/$/g, '')
    return readdirSync(`/proc/${pid}/fd`)
      .map((fd) => linkOf(`/proc/${pid}/fd/${fd}`))
      .find((path) => path?.endsWith(`/${end}`))
  } catch {
    return undefined
  }
}

/** Whether the process has this action script on its command line. */
export function runsScript(pid: number, script: string): boolean {
  const words = commandLine(pid).map((word) => word.replace(/^--action-script=/, ''))
  const from = linkOf(`/proc/${pid}/cwd`)
  if (from === undefined) return false
  return words.some((word) => [resolve(from, word), withoutLinks(resolve(from, word))].includes(script))
}

/** The path without symbolic links; undefined if it leads nowhere. */
function withoutLinks(path: string): string | undefined {
  try {
    return realpathSync(path)
  } catch {
    return undefined
  }
}
