/** The floors of the house: what may import what, and who may print. */
import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join, normalize, relative } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'

const test = suite('floors')

const root = dirname(import.meta.dirname)

interface SourceFile {
  /** From the root of the repository: `lib/format/frame.ts`. */
  path: string
  text: string
}

function filesOf(folder: string): SourceFile[] {
  const names = readdirSync(join(root, folder), { recursive: true }).map(String)
  const files = names
    .filter((name) => name.endsWith('.ts'))
    .map((name) => {
      const text = readFileSync(join(root, folder, name), 'utf8')
      return { path: join(folder, name), text }
    })
  return files.sort((a, b) => (a.path < b.path ? -1 : 1))
}

/** Everything that a file imports, in any way; ours as a path from the root. */
function importsOf({ path, text }: SourceFile): string[] {
  const found = text.matchAll(/\b(?:from|import|require)\s*\(?\s*(['"])([^'"]+)\1/g)
  return [...found].map(([, , name = '']) => (name.startsWith('.') ? normalize(join(dirname(path), name)) : name))
}

/** What a file imports of ours, as paths from the root. */
function ownImportsOf(file: SourceFile): string[] {
  return importsOf(file).filter((name) => name.includes('/') && name.endsWith('.ts'))
}

/** `lib/format` for its files, `lib` for the files of lib itself; the package's interface is a room of its own. */
function roomOf(path: string): string {
  if (path === 'lib/index.ts') return path
  const [top = '', folder = '', file] = path.split('/')
  return top !== 'lib' || file === undefined ? top : `lib/${folder}`
}

/** The rooms of each floor, from the top. An import points to a lower floor, or stays in its room. */
const floors: readonly (readonly string[])[] = [
  ['lib/index.ts'],
  ['lib/commands'],
  ['lib/criu-remote'],
  ['lib/cache', 'lib/precopy', 'lib/bench'],
  ['lib/handover'],
  ['lib/criu'],
  ['lib/store'],
  ['lib/stream', 'lib/cli'],
  ['lib/format', 'lib/kernel'],
  ['lib'],
]

function floorOf(path: string): number {
  return floors.findIndex((rooms) => rooms.includes(roomOf(path)))
}

const lib = filesOf('lib')
const scripts = filesOf('scripts')
const tests = filesOf('test')

test('an import points down, or sideways inside its folder', () => {
  assert.equal(new Set(lib.map(({ path }) => roomOf(path))), new Set(floors.flat()), 'a room that is not in the plan')
  let ours = 0
  for (const file of lib) {
    for (const name of ownImportsOf(file)) {
      ours++
      const down = roomOf(name) === roomOf(file.path) || floorOf(name) > floorOf(file.path)
      assert.ok(down, `${file.path} imports ${name}`)
    }
  }
  assert.ok(ours > 50, `only ${ours} imports were found`)
})

/** The files that import each other in a circle, types counted; undefined where there is none. */
function circleIn(files: readonly SourceFile[]): string[] | undefined {
  const imports = new Map(files.map((file) => [file.path, ownImportsOf(file)]))
  const cleared = new Set<string>()
  const find = (path: string, above: readonly string[]): string[] | undefined => {
    if (above.includes(path)) return [...above.slice(above.indexOf(path)), path]
    if (cleared.has(path)) return undefined
    for (const next of imports.get(path) ?? []) {
      const found = find(next, [...above, path])
      if (found !== undefined) return found
    }
    cleared.add(path)
    return undefined
  }
  for (const { path } of files) {
    const found = find(path, [])
    if (found !== undefined) return found
  }
  return undefined
}

test('no files import each other in a circle', () => {
  assert.is(circleIn(lib)?.join(' imports '), undefined)
  const circle = circleIn([
    { path: 'lib/a.ts', text: "import type { B } from './b.ts'" },
    { path: 'lib/b.ts', text: "import { c } from './c.ts'" },
    { path: 'lib/c.ts', text: "export type { B } from './b.ts'" },
  ])
  assert.equal(circle, ['lib/b.ts', 'lib/c.ts', 'lib/b.ts'], 'a circle is found')
})

test('the files of lib itself import nothing but the error class', () => {
  for (const file of lib.filter(({ path }) => roomOf(path) === 'lib')) {
    const allowed = file.path === 'lib/fault.ts' ? [] : ['lib/fault.ts']
    for (const name of importsOf(file)) assert.ok(allowed.includes(name), `${file.path} imports ${name}`)
  }
})

test('only lib/kernel names a function or constant of libc', () => {
  const importers = [...lib, ...scripts].filter((file) => ownImportsOf(file).includes('lib/kernel/libc.ts'))
  assert.ok(importers.length > 3)
  for (const { path } of importers) assert.is(roomOf(path), 'lib/kernel', path)
})

test('koffi is imported in one file', () => {
  const importers = [...lib, ...scripts, ...tests].filter((file) =>
    importsOf(file).some((name) => /^koffi(\/|$)/.test(name)),
  )
  assert.equal(
    importers.map(({ path }) => path),
    ['lib/kernel/libc.ts'],
  )
})

test('only lib/cli prints', () => {
  const quiet = lib.filter(({ path }) => roomOf(path) !== 'lib/cli')
  const printing = quiet.flatMap(({ path, text }) =>
    text
      .split('\n')
      .filter((line) => /\bconsole\b|\bprocess\.std(in|out|err)\b/.test(line))
      .map((line) => `${path}: ${line.trim()}`),
  )
  const allowed = [
    /^lib\/criu\/run\.ts: .*process\.stderr\.write\(`\$\{line\}\\n`\)$/, // criu's own messages, passed on
    /^lib\/stream\/endpoint\.ts: .*\w+Link\(process\.std(in|out), /, // handed over as a stream
  ]
  assert.equal(
    printing.filter((line) => !allowed.some((pattern) => pattern.test(line))),
    [],
  )
  assert.ok(quiet.length > 15)
})

/** Functions above the limit, by file and name, with the reason. */
const longFunctions: Record<string, string> = {}
const MOST_LINES = 60

/**
 * The functions and methods of a formatted file: a body ends with the first line that closes it at the head's indent.
 */
function functionsIn({ path, text }: SourceFile): { name: string; lines: number }[] {
  const lines = text.split('\n')
  const heads = [
    /^( *)(?:(?:export|default|async) )*function\*? *(\w+)/,
    /^( *)(?:export )?const (\w+) = (?:async )?(?:<.*>)?\((?:\{?|.*=> \{)$/,
    /^( *)(?:(?:async|static|private|override|get|set) )*\*?([#\w]+|\[Symbol\.\w+\])(?:<.*>)?\((?:\{?|.*\{)$/,
  ]
  return lines.flatMap((line, at) => {
    const [, indent = '', name = ''] = heads.map((head) => head.exec(line)).find((found) => found !== null) ?? []
    if (name === '' || /^(if|for|while|switch|catch|return|await|throw|test)$/.test(name)) return []
    const closes = (each: string): boolean => each.startsWith(`${indent}}`) || each.startsWith(`${indent})`)
    const after = (start: number): number => lines.findIndex((each, index) => index > start && closes(each))
    // Parameters on lines of their own end where a line closes them and opens the body.
    const opening = /[(<]\{?$/.test(line) ? after(at) : at
    if (!lines[opening]?.endsWith('{')) return []
    return [{ name: `${path} ${name}`, lines: after(opening) - at + 1 }]
  })
}

test('functions have at most 60 lines, but for those with a reason', () => {
  const all = [...lib, ...scripts].flatMap(functionsIn)
  assert.ok(all.length > 500, `only ${all.length} functions were found`)
  const long = all.filter(({ lines }) => lines > MOST_LINES).map(({ name }) => name)
  assert.equal(long.sort(), Object.keys(longFunctions).sort())
  const body = Array.from({ length: MOST_LINES }, () => '  work()')
  for (const head of ['export async function take(', 'function* take({', 'const take = (', '  static async take(']) {
    const indent = /^ */.exec(head)?.[0] ?? ''
    const text = [head, `${indent}  one: string,`, `${indent}${head.endsWith('{') ? '}' : ''}): void {`, ...body]
    const found = functionsIn({ path: 'lib/a.ts', text: [...text, `${indent}}`].join('\n') })
    assert.equal(found, [{ name: 'lib/a.ts take', lines: MOST_LINES + 4 }], head)
  }
})

test('a line has at most 120 columns', () => {
  for (const { path, text } of [...lib, ...scripts, ...tests]) {
    assert.equal(
      text.split('\n').filter((line) => line.length > 120),
      [],
      path,
    )
  }
})

test('every test file runs its tests', () => {
  const files = tests.filter(({ path }) => path.endsWith('.test.ts'))
  for (const { path, text } of files) {
    const suites = [...text.matchAll(/^const (\w+) = suite[<(]/gm)].map(([, name]) => name)
    assert.ok(suites.length > 0, `${path} has no suite`)
    for (const name of suites)
      assert.match(text, new RegExp(`^${name}\\.run\\(\\)$`, 'm'), `${path} never runs ${name}`)
    assert.not.match(text, /\btest\.only\(/, `${path} leaves tests out`)
  }
  assert.ok(files.some(({ path }) => path === relative(root, import.meta.filename)))
})

test.run()
