/**
 * The man pages say what the commands take: options and defaults, exit codes, cross references, examples that parse.
 */
import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { cacheOptions } from '../lib/cli/cache-options.ts'
import { commonOptions, type Options } from '../lib/cli/common-options.ts'
import { dumpOptions } from '../lib/cli/dump-options.ts'
import { exitCodes } from '../lib/cli/exit-codes.ts'
import { flattenOptions } from '../lib/cli/flatten-options.ts'
import { preCopyOptions } from '../lib/cli/pre-copy-options.ts'
import { proxyOptions } from '../lib/cli/proxy-options.ts'
import { restoreOptions } from '../lib/cli/restore-options.ts'
import { holdingStates } from '../lib/format/holdings.ts'
import { mandoc } from './support/programs.ts'
import { root } from './support/run.ts'

const test = suite('man')

const own: Record<string, Options> = {
  'criu-dump-to-stdout': dumpOptions,
  'criu-restore-from-socket': restoreOptions,
  'criu-image-proxy': proxyOptions,
  'criu-image-cache': cacheOptions,
  'criu-flatten': flattenOptions,
  'criu-pre-copy': preCopyOptions,
}
const commands = Object.entries(own).map(([name, options]) => {
  const all: Options = { ...options, ...commonOptions }
  return { name, options: all }
})
const folder = join(root, 'man')
const concepts = 'criu-ferry.7'
const pages = [...commands.map(({ name }) => `${name}.1`), concepts]
const textOf = (page: string): string => readFileSync(join(folder, page), 'utf8')

/** The text of each section, by its heading. */
function sectionsOf(page: string): Map<string, string> {
  const parts = textOf(page).split(/^\.Sh (.*)\n/m)
  return new Map(parts.flatMap((part, at) => (at % 2 === 1 ? [[part, parts[at + 1] ?? '']] : [])))
}

function section(page: string, heading: string): string {
  const text = sectionsOf(page).get(heading)
  if (text === undefined) throw new Error(`${page} has no section ${heading}`)
  return text
}

/** What the `Fl` macros of mdoc(7) text print, without their first dash: `t`, `-tree`. */
function flagsIn(text: string): string[] {
  const lines = text.split('\n').filter((line) => line.startsWith('.'))
  return lines.flatMap((line) => {
    let macro = ''
    return line
      .slice(1)
      .split(' ')
      .flatMap((word) => {
        if (/^[A-Z][a-z]$/.test(word)) macro = word
        else if (macro === 'Fl' && /^-?\w/.test(word)) return [word]
        return []
      })
  })
}

/** The entries of OPTIONS: the flags of each, and its text. An entry without flags is a part of the one before. */
function entriesOf(page: string): { flags: string[]; text: string }[] {
  return section(page, 'OPTIONS')
    .split(/^(?=\.It Fl )/m)
    .map((text) => ({ flags: flagsIn(text.split('\n')[0] ?? ''), text }))
    .filter(({ text, flags }) => text.startsWith('.It ') && flags.length > 0)
}

function flagsOf(options: Options): string[][] {
  return Object.entries(options).map(([name, { short }]) => [...(short === undefined ? [] : [short]), `-${name}`])
}

for (const { name, options } of commands) {
  const page = `${name}.1`

  test(`${page}: each option of the command has an entry, and each entry is an option`, () => {
    const described = entriesOf(page).map(({ flags }) => flags.join())
    assert.equal(described.sort(), flagsOf(options).map(String).sort())
  })

  test(`${page}: the default of each option`, () => {
    for (const [option, { default: value }] of Object.entries(options)) {
      if (typeof value !== 'string') continue
      const entry = entriesOf(page).find(({ flags }) => flags.includes(`-${option}`))
      const word = new RegExp(`default[^]*(?<!\\w)${value.replaceAll('.', '\\.')}(?!\\w)`)
      assert.match(entry?.text ?? '', word, option)
    }
  })

  test(`${page}: the synopsis has no option that the command does not take`, () => {
    const known = flagsOf(options).flat()
    for (const flag of flagsIn(section(page, 'SYNOPSIS'))) assert.ok(known.includes(flag), flag)
  })

  test(`${page}: its sections`, () => {
    const middle = ['DESCRIPTION', 'OPTIONS', 'ENVIRONMENT', 'FILES', 'SIGNALS', 'EXIT STATUS', 'EXAMPLES']
    assert.equal([...sectionsOf(page).keys()], ['NAME', 'SYNOPSIS', ...middle, 'SEE ALSO'])
  })
}

test('criu-image-cache.1: each state that --json can print', () => {
  const [, states = ''] = section('criu-image-cache.1', 'OPTIONS').split('.Ss States\n')
  const described = [...states.matchAll(/^\.It .* Pq Cm (\w+)$/gm)].map(([, state = '']) => state)
  assert.equal(described.sort(), [...holdingStates].sort())
})

test('criu-ferry.7: its sections', () => {
  const explained = ['SNAPSHOTS', 'CHAINS', 'HAND-OVER', 'DECIDING BY HAND', 'SECURITY']
  const middle = ['ENVIRONMENT', 'FILES', 'SIGNALS', 'EXIT STATUS', 'EXAMPLES']
  assert.equal([...sectionsOf(concepts).keys()], ['NAME', 'DESCRIPTION', ...explained, ...middle, 'SEE ALSO'])
})

test('an option that a page mentions is one of our commands', () => {
  const known = new Set(commands.flatMap(({ options }) => flagsOf(options).flat()))
  for (const page of pages) {
    for (const flag of flagsIn(textOf(page))) assert.ok(known.has(flag), `${page}: -${flag}`)
  }
})

test('exit codes: criu-ferry.7 has all, and no page another one', () => {
  const codesOf = (page: string): string[] =>
    [...section(page, 'EXIT STATUS').matchAll(/^\.It (.*)$/gm)].map(([, code = '']) => code)
  const all = [...new Set([0, ...Object.values(exitCodes)])].sort().map(String).concat('128+n')
  assert.equal(codesOf(concepts), all)
  for (const page of pages) {
    const codes = codesOf(page)
    assert.equal(
      codes,
      all.filter((code) => codes.includes(code)),
      page,
    )
    for (const code of ['0', '1', '2', '128+n']) assert.ok(codes.includes(code), `${page}: ${code}`)
  }
})

test('a cross reference leads to a page of ours, or to one of these', () => {
  const others = ['criu.8', 'splice.2', 'ssh.1', 'sudo.8', 'systemd.1', 'systemd.socket.5']
  for (const page of pages) {
    const named = [...textOf(page).matchAll(/\bXr (\S+) (\d)/g)].map(([, name, number]) => `${name}.${number}`)
    for (const each of named) assert.ok([...pages, ...others].includes(each), `${page}: ${each}`)
    assert.not(named.includes(page), `${page} leads to itself`)
  }
  const seeAlso = section(concepts, 'SEE ALSO')
  for (const { name } of commands) {
    assert.match(section(`${name}.1`, 'SEE ALSO'), /^\.Xr criu-ferry 7/m, name)
    assert.match(seeAlso, new RegExp(`^\\.Xr ${name} 1`, 'm'))
  }
})

test('the commands of the examples parse', () => {
  let parsed = 0
  for (const page of pages) {
    const text = section(page, 'EXAMPLES').replaceAll('\\e\n', '')
    const lines = text.split('\n').filter((line) => !line.startsWith('.'))
    // What is in quotes is a command line of its own.
    const all = lines.flatMap((line) => [
      line.replaceAll(/'[^']*'/g, 'QUOTED'),
      ...(line.match(/(?<=')[^']*(?=')/g) ?? []),
    ])
    for (const line of all) {
      for (const [, name, words = ''] of line.matchAll(/(?<!\w)(criu-[a-z-]+)((?:\s+(?!-- )[^\s|&<>]+)*)/g)) {
        const options = commands.find((command) => command.name === name)?.options
        assert.ok(options, `${page}: ${line}`)
        assert.not.throws(() => parseArgs({ args: words.split(/\s+/).filter(Boolean), options }), `${page}: ${line}`)
        parsed++
      }
    }
  }
  assert.ok(parsed > 20, String(parsed))
})

test('npm installs a page for each command, and criu-ferry.7', () => {
  const text = readFileSync(join(root, 'package.json'), 'utf8')
  const { bin, man, files } = JSON.parse(text) as { bin: object; man: string[]; files: string[] }
  assert.equal(Object.keys(bin).sort(), Object.keys(own).sort())
  assert.equal([...man].sort(), pages.map((page) => `man/${page}`).sort())
  assert.equal(readdirSync(folder).sort(), [...pages].sort())
  assert.ok(files.includes('man'))
})

/** Programs that find mistakes in the source of a page, the better one first. */
const linters = [
  [existsSync(mandoc) ? mandoc : 'mandoc', '-Tlint'],
  ['man', '--warnings', '--local-file', '-'],
]

/** What a linter says against a page, by its source. Only those that are installed know the pages of others. */
function complaints([program = '', ...args]: string[], source: string): string[] {
  const { stdout, stderr } = spawnSync(program, args, {
    input: source,
    encoding: 'utf8',
    env: { ...process.env, LC_ALL: 'C.UTF-8' },
  })
  // A program that is not here says nothing. man prints the page on stdout.
  const said = [args.includes('-Tlint') ? stdout : '', stderr].join('\n')
  return said.split('\n').filter((line) => line !== '' && !/referenced manual not found|mandoc\.db/.test(line))
}

test('a linter has nothing to say', () => {
  const broken = `${textOf(concepts)}.Bl -tag -width Ds\n.It\n`
  const linter = linters.find((each) => complaints(each, broken).length > 0)
  if (linter === undefined) return void console.log('skipped: neither mandoc nor man is here to check the man pages')
  for (const page of pages) assert.equal(complaints(linter, textOf(page)), [], `${linter[0]}: ${page}`)
})

test.run()
