/** What a criu that somebody else started does, read from its command line. */

import { readdirSync, readlinkSync, realpathSync } from 'node:fs'
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
  /** The first of the tasks, by the number that criu knows it by. */
  tree: number
  /** Its directory of images. */
  directory: string
  /** The same as it was given: `criu --remote` knows a dump by it. */
  images: string
  /** The directory of the dump before, where it looks whether a number means another process now. */
  before: string | undefined
  /** It sends images by `--stream` and pages by `--page-server`, as far as its command line says. */
  splits: boolean
  /** The tasks are to be there after the dump, running or stopped: says its command line, or a configuration file of it. */
  leaves: boolean
}

/** Options of criu with a value, of those that tell the action from a value (criu/config.c, 4.1.1). */
const TREE = ['-t', '--tree'] as const
const IMAGES = ['-D', '--images-dir'] as const
const WORK = ['-W', '--work-dir'] as const
const PREVIOUS = ['--prev-images-dir', '--prev-images-dir'] as const
/** The word after one of these is a name of somebody's choice, perhaps that of an action. */
const NAMED = /^(-[tDWoLr]|--(tree|images-dir|work-dir|prev-images-dir|log-file|libdir|root|pidfile|action-script))$/

/** Undefined for what is no criu that dumps. */
export function readCriuCommand(pid: number): CriuCommand | undefined {
  const words = commandLine(pid)
  const isAction = (word: string): boolean => word === 'dump' || word === 'pre-dump'
  const at = words.findIndex((word, at) => isAction(word) && !NAMED.test(words[at - 1] ?? ''))
  const tree = Number(optionOf(words, TREE))
  if (at < 1 || !Number.isSafeInteger(tree) || tree < 1) return undefined
  const images = optionOf(words, IMAGES)
  const directory = placeOf(pid, images, optionOf(words, WORK) !== undefined)
  if (directory === undefined) return undefined
  const has = (option: RegExp): boolean => words.some((word) => option.test(word))
  const splits = has(/^--stre/) && has(/^--page-s/)
  const leaves = [words, configuredOptions(words, startOf(pid))].some((said) => leavingOption(said) !== undefined)
  const before = beforeOf(directory, optionOf(words, PREVIOUS))
  return {
    pid,
    action: words[at] as CriuCommand['action'],
    tree,
    directory,
    images: images ?? '.',
    before,
    splits,
    leaves,
  }
}

/** CRIU 4.3 sends only what changed since another dump by `--stream`, too: where that is so, nobody on our way has the rest. */
export function incrementalFault(command: CriuCommand | undefined): Fault | undefined {
  if (command?.before === undefined || command.splits) return undefined
  return new Fault('REFUSED', 'criu dumps with --prev-images-dir: pages of the dump before would be missing', {
    hint: `dump without it; for rounds before a dump: ${commandName('pre-copy')}, or ${commandName('proxy')} --page-server-port`,
  })
}

/** The `-D` of a criu that restores, as it was typed; undefined for what is none. */
export function restoredFrom(pid: number): string | undefined {
  const words = commandLine(pid)
  return words.indexOf('restore') < 1 ? undefined : (optionOf(words, IMAGES) ?? '.')
}

/** getopt takes any beginning of a long option for it that begins no other: these begin with two dashes and two letters at least. */
const LEAST_NAME = 4

/** In any spelling that getopt takes; the last one counts. */
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

/** It has gone into its work directory, which is that of the images where none is named, and has both open (criu/crtools.c, 4.1.1). */
function placeOf(pid: number, images: string | undefined, apart: boolean): string | undefined {
  try {
    if (images !== undefined && isAbsolute(images)) return realpathSync(images)
    if (!apart) return readlinkSync(`/proc/${pid}/cwd`)
    const end = normalize(images ?? '.').replace(/^(\.\.?\/)+|\/$/g, '')
    return readdirSync(`/proc/${pid}/fd`)
      .map((fd) => linkOf(`/proc/${pid}/fd/${fd}`))
      .find((path) => path?.endsWith(`/${end}`))
  } catch {
    return undefined
  }
}

/** It is named as seen from that of the images (criu/image.c, 4.1.1). */
function beforeOf(directory: string, previous: string | undefined): string | undefined {
  try {
    return previous && realpathSync(resolve(directory, previous))
  } catch {
    return undefined
  }
}

/** Whether the process has this action script on its command line. */
export function runsScript(pid: number, script: string): boolean {
  const words = commandLine(pid).map((word) => word.replace(/^--action-script=/, ''))
  try {
    const from = readlinkSync(`/proc/${pid}/cwd`)
    return words.some((word) => [resolve(from, word), withoutLinks(resolve(from, word))].includes(script))
  } catch {
    return false
  }
}

function withoutLinks(path: string): string | undefined {
  try {
    return realpathSync(path)
  } catch {
    return undefined
  }
}
