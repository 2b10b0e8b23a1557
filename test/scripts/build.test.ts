import { chmodSync, cpSync, existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync } from 'node:fs'
import { dirname, join, normalize } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { type CommandName, commandName, isInstalled } from '../../lib/command-name.ts'
import { fixtures, root, run, shell, temporary } from '../support/run.ts'

const test = suite('scripts/build')

interface Package {
  version: string
  bin: Record<string, string>
  exports?: unknown
}

/** The programs and modules that others start or import, as package.json names them. */
function entriesOf({ bin, exports }: Package): string[] {
  const named = JSON.stringify([bin, exports ?? {}]).matchAll(/"(?:\.\/)?(dist\/[^"]+\.js)"/g)
  return [...new Set([...named].map(([, path = '']) => path))]
}

/** These modules, and what they import of ours. */
function reachedFrom(entries: readonly string[], folder: string): Set<string> {
  const reached = new Set(entries)
  for (const path of reached) {
    for (const [, name = ''] of readFileSync(join(folder, path), 'utf8').matchAll(
      /\b(?:from|import)\s*\(?\s*['"](\.[^'"]+)['"]/g,
    )) {
      reached.add(normalize(join(dirname(path), name)))
    }
  }
  return reached
}

const { version, bin } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as Package

// Not in place: other tests run what is built there.
const { path, remove } = temporary()
const copy = join(path, 'checkout')

test.before(async () => {
  for (const name of ['lib', 'scripts', 'package.json', 'tsconfig.json']) {
    cpSync(join(root, name), join(copy, name), { recursive: true })
  }
  symlinkSync(join(root, 'node_modules'), join(copy, 'node_modules'))
  const built = await run('npm', ['run', '--silent', 'build'], { cwd: copy })
  assert.is(built.code, 0, built.stdout.toString())
})
test.after(remove)

test('npm run build makes plain JavaScript that does the same', async () => {
  const names = [
    'criu-dump-to-stdout',
    'criu-flatten',
    'criu-image-cache',
    'criu-image-proxy',
    'criu-pre-copy',
    'criu-restore-from-socket',
  ]
  assert.equal(Object.keys(bin).sort(), names)
  for (const file of Object.values(bin)) {
    const said = await run(process.execPath, [join(copy, file), '--version'])
    assert.is(said.stdout.toString(), `${version}\n`, file)
  }
  const [dump, restore] = ['criu-dump-to-stdout', 'criu-restore-from-socket'].map((name) => join(copy, bin[name] ?? ''))
  const moved = await shell(`node ${dump} --from-dir ${fixtures}/images | node ${restore} --to-dir ${path}/images`)
  assert.is(moved.code, 0, moved.stderr)
  assert.ok(existsSync(join(path, 'images', 'inventory.img')))
})

test('installed commands call themselves and each other what the user types', async () => {
  mkdirSync(join(path, 'bin'))
  for (const [name, file] of Object.entries(bin)) {
    // As npm installs them.
    chmodSync(join(copy, file), 0o755)
    symlinkSync(join(copy, file), join(path, 'bin', name))
  }
  const installed = { env: { PATH: `${path}/bin:${process.env.PATH}`, FERRY_CRIU: '/bin/false' }, cwd: path }
  const said = async (line: string): Promise<string> => {
    const ran = await run('bash', ['-c', `PATH=${installed.env.PATH}; ${line}`], installed)
    return ran.stdout.toString() + ran.stderr
  }
  for (const name of Object.keys(bin)) {
    const help = await said(`${name} --help`)
    assert.ok(help.startsWith(`usage: ${name} `), help)
    const [, example = ''] = help.split('example, ')
    assert.match(example, `${name} `)
    for (const [, found = ''] of help.matchAll(
      /(?<![-\w])(dump-to-stdout|restore-from-socket|(pre-copy|cache|proxy|flatten) -)/g,
    )) {
      assert.unreachable(`${name} --help says ${found}`)
    }
  }
  assert.is(
    await said('criu-image-cache --bogus'),
    "criu-image-cache: error: unknown option '--bogus'\ncriu-image-cache: hint: criu-image-cache --help\n",
  )
  // A hint that lib/criu gives names another command.
  const incremental = await said('criu-dump-to-stdout -t 1 -- --prev-images-dir=x | cat')
  assert.match(
    incremental,
    /^criu-dump-to-stdout: error: [^\n]*\ncriu-dump-to-stdout: hint: [^\n]* use criu-pre-copy\n$/,
  )
  const detached = await said(`criu-image-cache -d --port 0 -D ${join(path, 'd'.repeat(100))}`)
  assert.match(detached, /^criu-image-cache: error: [^\n]*107 bytes/, 'a daemon that was detached')
})

test('the names that are installed are those of package.json; others are those of a checkout', () => {
  for (const [name, file] of Object.entries(bin)) {
    assert.ok(isInstalled(`/usr/local/bin/${name}`), name)
    assert.not.ok(isInstalled(join(root, file)), file)
    assert.ok(isInstalled(join('/usr/lib/node_modules/criu-ferry', file)), 'a package manager that makes no links')
    const short = file.replace(/.*\/|\.js$/g, '') as CommandName
    assert.is(commandName(short), short)
  }
  assert.not.ok(isInstalled(''))
})

test('npm run build compiles what the commands use, and nothing that only tests or the benchmark use', async () => {
  const { path, remove } = temporary()
  const config = join(root, 'scripts/tsconfig.build.json')
  const ran = await run(join(root, 'node_modules/.bin/tsc'), ['-p', config, '--outDir', join(path, 'dist')], {
    cwd: root,
  })
  assert.is(ran.code, 0, ran.stdout.toString())
  const compiled = readdirSync(path, { recursive: true }).map(String)
  const onlyTypes = (name: string): boolean =>
    /^\s*export \{\};\s*$/.test(readFileSync(join(path, name), 'utf8').replace(/\/\*[\s\S]*?\*\//g, ''))
  const modules = compiled.filter((name) => name.endsWith('.js') && !onlyTypes(name))
  const reached = reachedFrom(entriesOf(JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as Package), path)
  assert.equal(modules.sort(), [...reached].sort())
  assert.not(modules.some((name) => name.includes('bench')))
  remove()
})

test.run()
