import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { dirname, join, normalize } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
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

test('npm run build makes plain JavaScript that does the same', async () => {
  const built = await run('npm', ['run', '--silent', 'build'], { cwd: root })
  assert.is(built.code, 0, built.stdout.toString())
  const { version, bin } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as Package
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
    const said = await run(process.execPath, [join(root, file), '--version'])
    assert.is(said.stdout.toString(), `${version}\n`, file)
  }
  const { path, remove } = temporary()
  const [dump, restore] = ['criu-dump-to-stdout', 'criu-restore-from-socket'].map((name) => join(root, bin[name] ?? ''))
  const moved = await shell(`node ${dump} --from-dir ${fixtures}/images | node ${restore} --to-dir ${path}/images`)
  assert.is(moved.code, 0, moved.stderr)
  assert.ok(existsSync(join(path, 'images', 'inventory.img')))
  remove()
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
